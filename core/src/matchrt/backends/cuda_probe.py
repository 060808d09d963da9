"""Ask the NVIDIA driver, and nothing else, whether a GPU can be used. No package is needed and no context is made.

TensorRT's `Runtime` must not even be constructed without a usable GPU: the process would crash, at the latest when it exits.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_MAJOR, _MINOR, _SM_COUNT = 75, 76, 16  # CUdevice_attribute, stable numbers of cuda.h


@dataclass(frozen=True)
class Gpu:
    """One device as the driver describes it."""

    index: int
    name: str
    compute_capability: str
    """ "8.9", "9.0", …"""
    multiprocessors: int
    memory_bytes: int


@dataclass(frozen=True)
class CudaProbe:
    """What the driver said. `reason` tells why there is no GPU to use; it is empty if there is one."""

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    """The CUDA version that the driver supports, such as "13.0"."""
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether there is a GPU."""
        return bool(self.gpus)


def load_driver() -> ctypes.CDLL:
    """The driver library. Raises OSError where none is installed."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


@lru_cache(maxsize=1)
def probe() -> CudaProbe:
    """The GPUs of this machine (asked once a process). Never raises."""
    return probe_with(load_driver)


def probe_with(load: Callable[[], Any]) -> CudaProbe:
    """As `probe`, with the driver library that `load` returns."""
    try:
        cuda = load()
    except OSError:
        return CudaProbe(reason="no NVIDIA driver is installed (libcuda cannot be loaded)")
    try:
        code = cuda.cuInit(0)
        if code:
            return CudaProbe(
                reason=f"the NVIDIA driver does not start: cuInit returned {code} ({_MEANING.get(code, '?')})"
            )
        version, count = ctypes.c_int(), ctypes.c_int()
        cuda.cuDriverGetVersion(ctypes.byref(version))
        code = cuda.cuDeviceGetCount(ctypes.byref(count))
        if code:
            return CudaProbe(reason=f"the NVIDIA driver lists no devices: cuDeviceGetCount returned {code}")
        driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
        gpus = tuple(_describe(cuda, i) for i in range(count.value))
    except AttributeError as error:
        return CudaProbe(reason=f"the NVIDIA driver library is too old: {error}")
    return CudaProbe(gpus, driver, "" if gpus else "the NVIDIA driver sees no GPU (is CUDA_VISIBLE_DEVICES empty?)")


_MEANING = {3: "not initialised", 100: "no device", 999: "unknown; the driver and its kernel module may disagree"}


def _describe(cuda: Any, index: int) -> Gpu:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    capability = f"{attribute(_MAJOR)}.{attribute(_MINOR)}"
    return Gpu(index, name.value.decode("utf-8", "replace"), capability, attribute(_SM_COUNT), memory.value)
