"""ONNX Runtime: the default backend, on CPU everywhere. The one module that imports onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from matchrt.backends import BackendInfo
from matchrt.errors import BackendError, EnvironmentLackError

CPU = "CPUExecutionProvider"
PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
}


class OnnxRuntimeBackend:
    """Runs the bundle's ONNX as it is. Options: `provider` (cpu, cuda, tensorrt, rtx), `threads` (0: all cores)."""

    name = "onnxruntime"

    def info(self) -> BackendInfo:
        """Version and the providers that this build carries."""
        available = onnxruntime.get_available_providers()
        names = ", ".join(n for n, p in PROVIDERS.items() if p in available)
        return BackendInfo(version=onnxruntime.__version__, can_build=True, can_run=True, details={"providers": names})

    def open(self, network: str, graph: Path, options: Mapping[str, Any]) -> OnnxRuntimeEngine:
        """Load `graph`. Raises `BackendError` for a graph that onnxruntime refuses, `EnvironmentLackError` for a lacking provider."""
        session_options = onnxruntime.SessionOptions()
        session_options.log_severity_level = 3
        session_options.intra_op_num_threads = int(options.get("threads", 0))
        # Spinning threads starve other processes of a shared machine and gain nothing measurable here.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.get("spin", 0))))
        providers = _providers(str(options.get("provider", "cpu")))
        try:
            session = onnxruntime.InferenceSession(str(graph), session_options, providers=providers)
        except Exception as error:
            raise BackendError(
                f"onnxruntime refuses network {network!r} ({graph.name}): {_first_line(error)}"
            ) from error
        got = session.get_providers()[0]
        if got != providers[0]:
            raise BackendError(
                f"onnxruntime could not start {providers[0]} for network {network!r} and would fall back to {got}",
                hint="choose --provider cpu, or install what the provider needs",
            )
        return OnnxRuntimeEngine(network, session)


class OnnxRuntimeEngine:
    """A loaded graph. onnxruntime's own session may be called by several threads at once."""

    def __init__(self, network: str, session: onnxruntime.InferenceSession) -> None:
        self._network = network
        self._session: onnxruntime.InferenceSession | None = session

    def session(self) -> OnnxRuntimeSession:
        """A session; all of an engine's sessions share its memory."""
        if self._session is None:
            raise BackendError(f"network {self._network!r} is closed")
        return OnnxRuntimeSession(self._network, self._session)

    def close(self) -> None:
        """Free the graph."""
        self._session = None


class OnnxRuntimeSession:
    """Runs one network with numpy arrays."""

    def __init__(self, network: str, session: onnxruntime.InferenceSession) -> None:
        self._network = network
        self._session: onnxruntime.InferenceSession | None = session
        self._outputs = [o.name for o in session.get_outputs()]

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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
