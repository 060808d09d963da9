"""Find the cheapest set of float32 nodes with which a half-precision graph still meets a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from matchrt.graph.precision import PrecisionRecord
from matchrt.model import PrecisionRule

Measure = Callable[[onnx.ModelProto], float]
"""A figure for a graph, smaller is better: for example the mean distance in pixels to the float32 matches."""


@dataclass(frozen=True)
class Trial:
    """One evaluation: the blocks kept in float32, how many nodes that are, its figure, and whether it passed."""

    blocks: tuple[str, ...]
    kept: int
    figure: float
    passed: bool


@dataclass(frozen=True)
class MixedResult:
    """The chosen graph and everything that was tried, in order."""

    model: onnx.ModelProto
    record: PrecisionRecord
    passed: bool
    rules: tuple[PrecisionRule, ...]
    trials: tuple[Trial, ...]


def search_mixed(
    model: onnx.ModelProto,
    measure: Measure,
    limit: float,
    *,
    rules: Sequence[PrecisionRule] = (),
    network: str = "",
    budget: int = 32,
) -> MixedResult:
    """The cheapest passing graph found with at most `budget` calls of `measure`; passing means figure <= `limit`.

    Starts from `to_half` with `rules`; if that fails, keeps further blocks (nodes of one module path) in float32.
    """
    raise NotImplementedError
