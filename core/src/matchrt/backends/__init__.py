"""What runs a network. Each backend's library is imported by one module, and only when the backend is used.

An *engine* is a loaded network; threads share it. A *session* belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from matchrt.errors import PluginError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class BackendSpec:
    """A backend by name. `load` is "module:class", imported at first use; the class is called without arguments."""

    name: str
    load: str
    description: str

    def create(self) -> Backend:
        """Import the module and make the backend. Raises `PluginError` when the name does not exist."""
        import importlib

        module_name, _, attribute = self.load.partition(":")
        try:
            backend: Backend = getattr(importlib.import_module(module_name), attribute)()
        except (ImportError, AttributeError) as error:
            raise PluginError(f"backend {self.name!r} cannot be loaded from {self.load!r}: {error}") from error
        return backend


@dataclass(frozen=True, kw_only=True)
class BackendInfo:
    """What a backend can do here. `reason` says why it cannot."""

    version: str
    can_build: bool
    can_run: bool
    reason: str = ""
    details: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class DeviceArray(Protocol):
    """An array on a device; other libraries read it in place through the two protocols."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its axes."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """numpy's type of its elements."""

    @property
    def ndim(self) -> int:
        """Number of axes."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3."""

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        """A capsule, for work on the consumer's `stream`."""

    def numpy(self) -> np.ndarray:
        """A copy on the host, after the work that wrote it."""


class Session(Protocol):
    """A loaded engine as used by one thread.

    A session may also have `run_on_device(inputs, stream=None)`, which takes numpy arrays and arrays on the device and returns
    `DeviceArray`s by name; `run_steps` then hands tensors from network to network without copying them to the host.
    It may have `batch_bounds`, the fewest and most of the leading axis by input that it was built for, where that is less than the
    bundle allows.
    A backend that can time layers takes the option `layer_times`, and its sessions then have `layer_times()`: median seconds by layer
    over the runs so far (`matchrt.backends.layers`). Such a session is slower than others.
    """

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises `BackendError` with the network's name and the shapes that it got."""

    def close(self) -> None:
        """Free what the session holds. It may be called twice."""


class Engine(Protocol):
    """A network that a backend has loaded; shared by threads."""

    def session(self) -> Session:
        """A session for the calling thread."""

    def close(self) -> None:
        """Free the engine. It may be called twice."""


class Backend(Protocol):
    """Loads networks of a bundle.

    A backend that needs more than one graph at a time (the bundle's weights and settings, say) also has
    `open_bundle(bundle, hooks, precision, options) -> dict[str, Engine]`, an engine for every network of the bundle; it then decides
    itself which precisions there are, and `open` is not called. `torch` does so.
    """

    name: str

    def info(self) -> BackendInfo:
        """Whether the backend works here; never raises, never crashes the process."""

    def open(self, network: str, graph: Path, options: Mapping[str, Any]) -> Engine:
        """Load the ONNX file `graph`. Raises `BackendError`."""
