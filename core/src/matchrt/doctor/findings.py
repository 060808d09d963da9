"""The words of a report: findings, needs, and the examination that holds both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any


class State(str, Enum):
    """How a finding stands. `BROKEN` is there but does not work; `MISSING` is not there."""

    OK = "ok"
    WARN = "warn"
    MISSING = "missing"
    BROKEN = "broken"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `repair` is a command or a step, and always there unless the state is `OK`."""

    group: str
    name: str
    state: State
    value: str
    repair: str = ""
    data: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The same for programs."""

    def __post_init__(self) -> None:
        if self.state is not State.OK and not self.repair:
            raise ValueError(f"the finding {self.group}/{self.name} is {self.state.value} but says no repair")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = {"group": self.group, "name": self.name, "state": self.state.value, "value": self.value}
        return {**fields, "repair": self.repair or None, "data": dict(self.data)}


@dataclass(frozen=True)
class Need:
    """What was asked for by name (`--for`), whether it is met, and if not why and what repairs it."""

    name: str
    why: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether nothing lacks."""
        return not self.why

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "met": self.met, "why": list(self.why), "repair": list(self.repairs)}
