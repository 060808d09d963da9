"""What core itself registers, through the same hooks as any plugin."""

from __future__ import annotations

from collections.abc import Sequence

from matchrt.backends import BackendSpec
from matchrt.files.writers import BUILT_IN, Writer
from matchrt.hooks import hookimpl

MATCHRT_API_VERSION = 1


@hookimpl
def register_backends() -> Sequence[BackendSpec]:
    """The backends that need no further plugin."""
    return [
        BackendSpec(
            name="onnxruntime",
            load="matchrt.backends.onnxruntime:OnnxRuntimeBackend",
            description="ONNX Runtime, on CPU by default",
        ),
        BackendSpec(
            name="tensorrt",
            load="matchrt.backends.tensorrt.backend:TensorRtBackend",
            description="NVIDIA TensorRT 8.6, 10 and 11, built for and on the GPU that runs it",
        ),
        BackendSpec(
            name="tensorrt_rtx",
            load="matchrt.backends.tensorrt.backend:TensorRtRtxBackend",
            description="NVIDIA TensorRT for RTX, builds without a GPU too",
        ),
        BackendSpec(
            name="torch",
            load="matchrt.backends.torch.backend:TorchBackend",
            description="PyTorch with the bundle's own checkpoint: the reference",
        ),
    ]


@hookimpl
def register_writers() -> Sequence[Writer]:
    """The output formats that need no further plugin."""
    return BUILT_IN
