"""The one module that imports TensorRT's binding. What a release offers is found out by looking, never by comparing versions.

Enumerations are looked up by name; their numbers differ between releases and are never stored. Names and where they exist: the
recorded API tables under `tests/core/backends/data`.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from matchrt.backends.layers import LayerTimes
from matchrt.errors import BackendError, EnvironmentLackError
from matchrt.progress import Progress

CAPABILITIES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "explicit-batch": ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),
        "strongly-typed": ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        "legacy-build": ("Builder", "build_engine"),
        "half-flag": ("BuilderFlag", "FP16"),
        "obey-precision": ("BuilderFlag", "OBEY_PRECISION_CONSTRAINTS"),
        "layer-precision": ("ILayer", "precision"),
        "progress": ("IBuilderConfig", "progress_monitor"),
        "parser-nodes": ("ParserError", "node_name"),
        "native-instancenorm": ("OnnxParserFlag", "NATIVE_INSTANCENORM"),
        "compute-capabilities": ("IBuilderConfig", "set_compute_capability"),
        "int64": ("DataType", "INT64"),
        "max-num-tactics": ("IBuilderConfig", "max_num_tactics"),
        "plugin-library": ("", "init_libnvinfer_plugins"),
        "profile-sharing": ("PreviewFeature", "PROFILE_SHARING_0806"),
        "user-managed": ("ExecutionContextAllocationStrategy", "USER_MANAGED"),
        "bare-context": ("ICudaEngine", "create_execution_context_without_device_memory"),
        "memory-size": ("ICudaEngine", "device_memory_size"),
        "memory-size-v2": ("ICudaEngine", "device_memory_size_v2"),
        "set-memory": ("IExecutionContext", "set_device_memory"),
    }
)
"""What differs between releases: a name of ours, and the class or enum and its member that must exist."""

PACKAGES = {
    "tensorrt": "pip install 'matchrt[tensorrt]' (the libraries come from NVIDIA's own index), or use the one of JetPack",
    "tensorrt_rtx": "pip install 'matchrt[rtx]'",
}


@dataclass(frozen=True)
class Message:
    """A line of TensorRT's log. `severity` is its name: INTERNAL_ERROR, ERROR, WARNING, INFO or VERBOSE."""

    severity: str
    text: str


class LogBridge:
    """Receives what TensorRT logs and hands it to the captures that are open. One for each module and process.

    TensorRT keeps the first logger it is given for the life of the process, so there must be only one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captures: list[list[Message]] = []

    def receive(self, severity: str, text: str) -> None:
        """Called by TensorRT, from any thread."""
        with self._lock:
            for capture in self._captures:
                capture.append(Message(severity, text))

    @contextmanager
    def capture(self) -> Iterator[list[Message]]:
        """The messages that arrive while the block runs, verbose ones excepted."""
        messages: list[Message] = []
        with self._lock:
            self._captures.append(messages)
        try:
            yield messages
        finally:
            with self._lock:
                self._captures = [c for c in self._captures if c is not messages]


class Monitor:
    """Turns TensorRT's phases into stages of a `Progress`, and carries cancelling and exceptions across its C++ frames.

    TensorRT prints and swallows an exception raised in a callback; so it is kept in `error` for the builder to raise.
    """

    def __init__(self, progress: Progress) -> None:
        self.error: BaseException | None = None
        self._progress = progress
        self._open: list[str] = []
        self._cancelled = threading.Event()
        self._lock = threading.RLock()

    def cancel(self) -> None:
        """Ask the build to stop at its next step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether the build is to stop."""
        return self._cancelled.is_set()

    def started(self, phase: str, steps: int | None) -> None:
        """A phase begins inside those that are open."""
        with self._lock, self._guard():
            self._open.append(phase)
            self._progress.start(phase, steps)

    def stepped(self, phase: str) -> bool:
        """A step of `phase` is done; False stops the build."""
        with self._lock, self._guard():
            if self._open and self._open[-1] == phase:
                self._progress.advance(1)
        return not self._cancelled.is_set()

    def finished(self, phase: str) -> None:
        """`phase` and whatever is still open inside it are done."""
        with self._lock, self._guard():
            while phase in self._open:
                self._open.pop()
                self._progress.finish()

    def close(self) -> None:
        """Finish the stages that a cancelled build left open."""
        while self._open:
            self._open.pop()
            self._progress.finish()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.error = self.error or error
            self._cancelled.set()


@dataclass(frozen=True)
class TrtApi:
    """An imported binding with what it can do (`caps`, names of `CAPABILITIES`), and the process's only logger."""

    name: str
    module: Any
    version: str
    caps: frozenset[str]
    logger: Any
    log: LogBridge

    def has(self, capability: str) -> bool:
        """Whether this release has `capability` (a name of `CAPABILITIES`; another raises KeyError)."""
        CAPABILITIES[capability]
        return capability in self.caps

    @property
    def typed(self) -> bool:
        """Whether a graph's own types decide (10 and later). Release 9 could do both; graphs are prepared for constraints there."""
        return self.has("strongly-typed") and not self.has("legacy-build")

    def enum(self, kind: str, name: str) -> Any:
        """The member `name` of enumeration `kind`. Raises `BackendError` naming the release that lacks it."""
        members = getattr(getattr(self.module, kind, None), "__members__", {})
        if name not in members:
            known = ", ".join(members) or "nothing: it does not exist"
            raise BackendError(f"{self.name} {self.version} has no {kind}.{name}", hint=f"it has {known}")
        return members[name]

    def monitor(self, target: Monitor) -> Any:
        """An `IProgressMonitor` that reports to `target`. Only with capability "progress"."""
        return _monitor_class(self.module)(target)

    def profiler(self, target: LayerTimes) -> Any:
        """An `IProfiler` that reports to `target`, for `IExecutionContext.profiler`."""
        return _profiler_class(self.module)(target)


@lru_cache(maxsize=2)
def load_api(name: str) -> TrtApi:
    """The binding called `name` ("tensorrt" or "tensorrt_rtx"). Raises `EnvironmentLackError` where it cannot be imported."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        problem = "is not installed" if missing else f"cannot be imported: {error}"
        raise EnvironmentLackError(f"{name} {problem}", hint=PACKAGES[name]) from None
    return adapt(name, module)


def adapt(name: str, module: Any) -> TrtApi:
    """The adapter of an imported binding. Raises `EnvironmentLackError` for one that is no TensorRT of 8.6 or later."""
    if not hasattr(module, "Builder") or not hasattr(getattr(module, "ICudaEngine", None), "num_io_tensors"):
        version = getattr(module, "__version__", "of unknown version")
        raise EnvironmentLackError(f"{name} {version} is too old or not complete", hint="8.6, 10 or 11 is needed")
    bridge = LogBridge()
    caps = frozenset(cap for cap, (kind, member) in CAPABILITIES.items() if _present(module, kind, member))
    logger = _logger_class(module)(bridge)
    api = TrtApi(name, module, str(module.__version__), caps, logger, bridge)
    if api.has("plugin-library"):
        # Registers TensorRT's own plugins, which the parser needs for some operators. Lean installations lack them: no harm.
        module.init_libnvinfer_plugins(logger, "")
    return api


def _present(module: Any, kind: str, member: str) -> bool:
    owner = getattr(module, kind, None) if kind else module
    members = getattr(owner, "__members__", None)
    return member in members if members is not None else hasattr(owner, member)


def _logger_class(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Hands every line to a bridge."""

        def __init__(self, bridge: LogBridge) -> None:
            trt.ILogger.__init__(self)
            self._bridge = bridge

        def log(self, severity: Any, msg: str) -> None:
            """Called by TensorRT."""
            if severity.name != "VERBOSE":
                self._bridge.receive(severity.name, msg)

    return Logger


def _monitor_class(trt: Any) -> Any:
    class ProgressMonitor(trt.IProgressMonitor):
        """Reports to a `Monitor`."""

        def __init__(self, target: Monitor) -> None:
            trt.IProgressMonitor.__init__(self)
            self._target = target

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Called by TensorRT."""
            self._target.started(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Called by TensorRT; False cancels the build."""
            return self._target.stepped(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            """Called by TensorRT."""
            self._target.finished(phase_name)

    return ProgressMonitor


def _profiler_class(trt: Any) -> Any:
    class Profiler(trt.IProfiler):
        """Reports to a `LayerTimes`."""

        def __init__(self, target: LayerTimes) -> None:
            trt.IProfiler.__init__(self)
            self._target = target

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            """Called by TensorRT after each run, for every layer."""
            self._target.add(layer_name, ms / 1e3)

    return Profiler
