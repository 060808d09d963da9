"""What a backend that builds engines is asked for and answers. Plain data: it may cross to another process as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from matchrt.progress import Progress

if TYPE_CHECKING:
    from matchrt.backends import Engine
    from matchrt.model import Target

Shape = tuple[int, ...]
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Profile:
    """The shapes that one input accepts, and the one to tune for."""

    input: str
    min: Shape
    opt: Shape
    max: Shape

    @property
    def fixed(self) -> bool:
        """Whether there is only one shape."""
        return self.min == self.max


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What besides graph and options decides whether an engine can be used: the builder's full version and the device.

    `compute_capability` and `gpu` are empty where the engine is built for `targets` instead. `driver` is recorded, but is no part
    of the key: drivers are backward compatible.
    """

    version: str
    compute_capability: str = ""
    gpu: str = ""
    platform: str = ""
    driver: str = ""


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """One network to build. `kept` names graph nodes that must stay float32 where the precision is no part of the graph."""

    network: str
    graph: Path
    precision: str = "fp32"
    profiles: tuple[Profile, ...] = ()
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    targets: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    timing_cache: bytes = b""


@dataclass(frozen=True, kw_only=True)
class IoTensor:
    """An input or output as the engine itself declares it; -1 stands for a dynamic axis."""

    name: str
    kind: str
    """ "input" or "output"."""
    dtype: str
    shape: Shape

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class BuildOutput:
    """A built engine, not yet stored. `messages` are the builder's warnings, `notes` say what was done in sentences."""

    payload: Buffer
    io: tuple[IoTensor, ...]
    messages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    timing_cache: bytes = b""


class BuildingBackend(Protocol):
    """A backend whose engines are built once and kept in the cache."""

    name: str
    runs_as_is: frozenset[str]
    """Precisions in which the bundle's own graph runs: then there is nothing to build."""
    isolates: bool
    """Whether a build runs in a process of its own, because it could not be stopped otherwise."""

    def identity(self, targets: Sequence[str]) -> Identity:
        """Version and device, for the engine key. Raises `EnvironmentLackError` where engines cannot be built here."""

    def target(self, precision: str) -> Target:
        """What graphs are prepared for."""

    def options(self, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
        """`chosen` checked and completed by defaults, as JSON-able values by name. Raises `UsageError`."""

    def build(self, job: BuildJob, progress: Progress) -> BuildOutput:
        """Build one network. Raises `BackendError` with the builder's own reasons."""

    def merge_timing(self, theirs: bytes, fresh: bytes) -> bytes:
        """Both kernel timings in one."""

    def load(self, network: str, payload: bytes, io: Sequence[IoTensor], options: Mapping[str, Any]) -> Engine:
        """Deserialise an engine whose origin was checked. Raises `BackendError`, `EnvironmentLackError`."""
