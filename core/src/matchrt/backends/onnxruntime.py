"""ONNX Runtime: the default backend, on CPU everywhere. The one module that imports onnxruntime."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from matchrt.backends import BackendInfo
from matchrt.backends.building import BuildJob, BuildOutput, Identity, IoTensor
from matchrt.backends.layers import LayerTimes
from matchrt.errors import BackendError, EnvironmentLackError, UsageError
from matchrt.model import Target
from matchrt.progress import Progress, stage

CPU = "CPUExecutionProvider"
PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
}


_LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
}


class OnnxRuntimeBackend:
    """Runs the bundle's ONNX as it is. Options: `provider` (cpu, cuda, tensorrt, rtx), `threads` (0: all cores), `layer_times`."""

    name = "onnxruntime"
    isolates = False
    runs_as_is = frozenset({"fp32"})
    """Precisions in which the bundle's own graph runs: then there is nothing to build."""

    def info(self) -> BackendInfo:
        """Version and the providers that this build carries."""
        available = onnxruntime.get_available_providers()
        names = ", ".join(n for n, p in PROVIDERS.items() if p in available)
        return BackendInfo(version=onnxruntime.__version__, can_build=True, can_run=True, details={"providers": names})

    def identity(self, targets: Sequence[str]) -> Identity:
        """Version and platform. Raises `UsageError` for targets."""
        if targets:
            raise UsageError("onnxruntime takes no --target", hint="leave it out")
        return Identity(version=onnxruntime.__version__, platform=f"{sys.platform}-{platform.machine().lower()}")

    def target(self, precision: str) -> Target:
        """What graphs are prepared for."""
        return Target(backend=self.name, version=onnxruntime.__version__, precision=precision)

    def options(self, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
        """`provider` and `optimise` (none, or the level up to which the stored graph is optimised: basic, extended)."""
        defaults = {"provider": "cpu", "optimise": "none"}
        choices = {"provider": tuple(PROVIDERS), "optimise": tuple(_LEVELS)}
        for name, value in chosen.items():
            if name not in defaults:
                raise UsageError(f"onnxruntime has no build option {name!r}", hint=f"known: {', '.join(defaults)}")
            if value not in choices[name]:
                raise UsageError(f"build option {name}: {value!r} is not one of {', '.join(choices[name])}")
        return {**defaults, **chosen}

    def build(self, job: BuildJob, progress: Progress) -> BuildOutput:
        """Load the prepared graph once under the chosen provider, and keep it, optimised or as it is. Raises `BackendError`."""
        level = str(job.options["optimise"])
        stored = job.graph if level == "none" else job.graph.with_suffix(f".{level}.onnx")
        with stage(progress, f"load {job.network} under {job.options['provider']}"):
            extra = {} if level == "none" else {"optimise": level, "store": str(stored)}
            engine = self.open(job.network, job.graph, {"provider": job.options["provider"], **extra})
            io = engine.io()
            engine.close()
        if job.graph.with_name(f"{job.graph.name}.data").exists():
            raise BackendError(
                f"the {job.precision} graph of {job.network!r} exceeds 2 GB, which this cache cannot keep"
            )
        kept = "kept as prepared" if level == "none" else f"optimised by onnxruntime (level {level}) and kept"
        note = f"one session was created under {PROVIDERS[job.options['provider']]}; the graph is {kept}"
        return BuildOutput(payload=stored.read_bytes(), io=io, notes=(note,))

    def merge_timing(self, theirs: bytes, fresh: bytes) -> bytes:
        """There are no kernel timings."""
        return fresh or theirs

    def load(
        self, network: str, payload: bytes, io: Sequence[IoTensor], options: Mapping[str, Any]
    ) -> OnnxRuntimeEngine:
        """Load a graph from the engine cache. Raises as `open`."""
        return self.open(network, payload, options)

    def open(self, network: str, graph: Path | bytes, options: Mapping[str, Any]) -> OnnxRuntimeEngine:
        """Load `graph`. Raises `BackendError` for a graph that onnxruntime refuses, `EnvironmentLackError` for a lacking provider."""
        source = graph if isinstance(graph, bytes) else str(graph)
        shown = "from the engine cache" if isinstance(graph, bytes) else graph.name
        session_options = onnxruntime.SessionOptions()
        session_options.log_severity_level = 3
        session_options.intra_op_num_threads = int(options.get("threads", 0))
        # Spinning threads starve other processes of a shared machine and gain nothing measurable here.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.get("spin", 0))))
        if "store" in options:
            session_options.graph_optimization_level = _LEVELS[options["optimise"]]
            session_options.optimized_model_filepath = options["store"]
        trace = None
        if options.get("layer_times"):
            trace = tempfile.TemporaryDirectory(prefix="matchrt-trace-")
            session_options.enable_profiling = True
            session_options.profile_file_prefix = str(Path(trace.name) / network)
        providers = _providers(str(options.get("provider", "cpu")))
        try:
            session = onnxruntime.InferenceSession(source, session_options, providers=providers)
        except Exception as error:
            raise BackendError(f"onnxruntime refuses network {network!r} ({shown}): {_first_line(error)}") from error
        got = session.get_providers()[0]
        if got != providers[0]:
            raise BackendError(
                f"onnxruntime could not start {providers[0]} for network {network!r} and would fall back to {got}",
                hint="choose --provider cpu, or install what the provider needs",
            )
        return OnnxRuntimeEngine(network, session, trace)


class OnnxRuntimeEngine:
    """A loaded graph. onnxruntime's own session may be called by several threads at once."""

    def __init__(
        self, network: str, session: onnxruntime.InferenceSession, trace: tempfile.TemporaryDirectory[str] | None
    ) -> None:
        self._network, self._trace = network, trace
        self._session: onnxruntime.InferenceSession | None = session

    def session(self) -> OnnxRuntimeSession:
        """A session; all of an engine's sessions share its memory."""
        if self._session is None:
            raise BackendError(f"network {self._network!r} is closed")
        return OnnxRuntimeSession(self._network, self._session, self._trace)

    def io(self) -> tuple[IoTensor, ...]:
        """Inputs and outputs as the graph declares them."""
        assert self._session is not None
        kinds = (("input", self._session.get_inputs()), ("output", self._session.get_outputs()))
        return tuple(
            IoTensor(
                name=t.name,
                kind=kind,
                dtype=_DTYPES.get(t.type, t.type),
                shape=tuple(s if isinstance(s, int) else -1 for s in t.shape),
            )
            for kind, tensors in kinds
            for t in tensors
        )

    def close(self) -> None:
        """Free the graph."""
        self._session = None


class OnnxRuntimeSession:
    """Runs one network with numpy arrays."""

    def __init__(
        self, network: str, session: onnxruntime.InferenceSession, trace: tempfile.TemporaryDirectory[str] | None = None
    ) -> None:
        self._network, self._trace = network, trace
        self._session: onnxruntime.InferenceSession | None = session
        self._outputs = [o.name for o in session.get_outputs()]
        shapes = {i.name: i.shape for i in session.get_inputs()}
        self.batch_bounds = {n: (s[0], s[0]) for n, s in shapes.items() if s and isinstance(s[0], int)}
        """(fewest, most) of the leading axis of each input, where the graph fixes it."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises `BackendError`."""
        if self._session is None:
            raise BackendError(f"the session of network {self._network!r} is closed")
        try:
            values = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            shapes = ", ".join(f"{n} {v.dtype}{list(v.shape)}" for n, v in inputs.items())
            raise BackendError(
                f"onnxruntime failed in network {self._network!r} on {shapes}: {_first_line(error)}"
            ) from error
        return dict(zip(self._outputs, values, strict=True))

    def layer_times(self) -> Mapping[str, float]:
        """See `matchrt.backends.Session`; layers are the nodes that onnxruntime runs, copies included. It ends the recording.

        Raises `BackendError` unless opened with the option `layer_times`, or when asked twice.
        """
        if self._session is None or self._trace is None:
            raise BackendError(
                f"network {self._network!r} was not opened with the option layer_times, or has told them"
            )
        events = json.loads(Path(self._session.end_profiling()).read_text("utf-8"))
        self._trace.cleanup()
        self._trace = None
        return _node_times(events).medians()

    def close(self) -> None:
        """Let go of the engine."""
        self._session = None


def _providers(name: str) -> Sequence[str]:
    if name not in PROVIDERS:
        raise EnvironmentLackError(f"onnxruntime has no provider {name!r}; known: {', '.join(PROVIDERS)}")
    provider = PROVIDERS[name]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise EnvironmentLackError(
            f"this onnxruntime ({onnxruntime.__version__}) carries no {provider}",
            hint="install the onnxruntime build that does (for CUDA and TensorRT: onnxruntime-gpu)",
        )
    return [provider] if provider == CPU else [provider, CPU]


def _node_times(events: Sequence[Mapping[str, Any]]) -> LayerTimes:
    """From the trace that onnxruntime writes: kernels in the order of their ends, and a `model_run` after those of a run."""
    times = LayerTimes()
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            operator = event.get("args", {}).get("op_name", "")
            times.add(f"{name.removesuffix('_kernel_time')} [{operator}]", float(event["dur"]) / 1e6)
        elif name == "model_run":
            times.end_run()
    return times


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
