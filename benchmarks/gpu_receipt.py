"""What a receipt made on a GPU says of the machine. Imports neither torch nor TensorRT unless they are there."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version

from matchrt.backends.cuda_probe import probe

PACKAGES = ("numpy", "torch", "tensorrt", "onnx", "onnxruntime", "cupy-cuda12x", "cuda-bindings", "cuda-core")


def gpu_machine() -> dict[str, object]:
    """GPU, CUDA version of the driver, TensorRT, packages, date."""
    found = probe()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gpu": [g.name for g in found.gpus],
        "driver_cuda": found.driver,
        "tensorrt": _tensorrt(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "packages": {p: v for p in PACKAGES if (v := _version(p))},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _tensorrt() -> str:
    try:
        import tensorrt
    except ImportError:
        return "not installed"
    return str(tensorrt.__version__)
