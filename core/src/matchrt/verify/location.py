"""Where a difference enters, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from matchrt.verify.figures import finite


@dataclass(frozen=True, kw_only=True)
class Point:
    """A named tensor inside a network. `error` is its relative error, `inherited` the largest one among the points that it is made from.

    `name` is `MODULE.PATH` for what a module returns and `MODULE.PATH (input)` for what it is given; `tensor` the graph's own name.
    """

    name: str
    tensor: str
    error: float
    inherited: float
    max_abs: float


@dataclass(frozen=True, kw_only=True)
class Location:
    """The first point of `network` whose error jumps.

    `place` is the module in whose own computation that happens ("" is the network's own forward), `nodes` the graph's nodes between
    the last points that agree and the first that does not, nearest last. `culprit` is the node, where one could be told. `points` are
    all that were compared, in the order of the graph. `sentence` says it to people.
    """

    network: str
    pair: str
    place: str | None
    point: Point | None
    nodes: tuple[str, ...]
    culprit: str | None
    points: tuple[Point, ...]
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain
