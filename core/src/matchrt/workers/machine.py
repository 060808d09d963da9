"""What this process runs on: versions and devices, as JSON-able values."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matchrt.backends.clock import clock_of
from matchrt.backends.cuda_probe import probe

if TYPE_CHECKING:
    from matchrt.runtime import Matcher

_BESIDE = ("numpy", "torch", "onnxruntime", "tensorrt", "tensorrt_rtx")


def versions_of(backend: str = "") -> dict[str, str]:
    """Of Python, matchrt, and the libraries that are loaded; `backend` and its version if it is one of them."""
    found = {"python": platform.python_version(), "matchrt": package_version("matchrt")}
    for name in _BESIDE:
        module = sys.modules.get(name)
        if module is not None:
            found[name] = str(getattr(module, "__version__", "") or package_version(name))
    return {"backend": backend, **found} if backend else found


def package_version(name: str) -> str:
    """Of an installed distribution; "unknown" where it was put on the path without its metadata."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def device_of(matcher: Matcher, provider: str | None = None) -> dict[str, Any]:
    """Where `matcher` runs: "kind" is "cuda" or "cpu", "name" the GPU's or the processor's; the driver and more where known."""
    kinds = {clock_of(s).kind for s in matcher.sessions().values()}
    return device_record("cuda" if "cuda" in kinds or (provider or "cpu") != "cpu" else "cpu")


def device_record(kind: str, index: int = 0) -> dict[str, Any]:
    """The same for a device of `kind`."""
    gpus = probe().gpus
    if kind != "cuda" or index >= len(gpus):
        return {"kind": "cpu" if kind != "cuda" else kind, "name": processor()}
    gpu = gpus[index]
    return {
        "kind": "cuda",
        "name": gpu.name,
        "compute_capability": gpu.compute_capability,
        "memory_bytes": gpu.memory_bytes,
        "cuda_driver": probe().driver,
    }


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine_record(packages: Sequence[str] = ()) -> dict[str, Any]:
    """This machine and the versions of `packages`, for a receipt: no names of hosts, users or folders."""
    gpus = probe()
    versions = {"packages": {p: package_version(p) for p in packages}} if packages else {}
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpus": [g.name for g in gpus.gpus],
        "cuda_driver": gpus.driver,
        **versions,
    }
