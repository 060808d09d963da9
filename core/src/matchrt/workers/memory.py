"""Peak memory of a worker, measured in one way for whatever library it runs.

On the device: what NVML (or, without it, cuMemGetInfo) says is in use on the whole device, sampled by a
thread, but not while calls are timed: what they need is there after the warm-up. While a worker is idle
its memory does not change, so its own share is the sum of the changes during its commands. That holds while one worker works at a time
and nobody else uses the GPU. On the host: the high-water mark that the kernel keeps for this process.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matchrt.backends.cuda_probe import probe
from matchrt.errors import MatchrtError

_INTERVAL = 0.002


class DeviceWatch:
    """Follows the device's memory during the commands of this process. `measure` names the source, "" without a GPU."""

    def __init__(self, read: Callable[[], int] | None = None, measure: str = "") -> None:
        if read is None and probe().usable:
            read, measure = _nvml() or _driver() or (None, "")
        self.measure = measure
        self.own = 0
        self.peak = 0
        self.context: int | None = None
        self._read = read

    @contextmanager
    def during(self, sample: bool = True) -> Iterator[None]:
        """Add what the block allocates to this process's share. `sample` follows the peak on the way, at some cost to the block's own
        speed; without it the ends count alone."""
        if self._read is None:
            yield
            return
        begin, before = self._read(), self.own
        stop = threading.Event()

        def follow() -> None:
            assert self._read is not None
            while True:
                self.peak = max(self.peak, before + self._read() - begin)
                if stop.wait(_INTERVAL):
                    return

        thread = threading.Thread(target=follow, daemon=True)
        if sample:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if sample:
                thread.join()
            self.own = before + self._read() - begin
            self.peak = max(self.peak, self.own)

    def make_context(self) -> None:
        """Make the device's primary context and note what it takes, so that what comes on top can be told apart."""
        if self._read is None or self.context is not None:
            return
        from matchrt.backends.tensorrt.cuda import driver

        with self.during(), driver().current():
            pass
        self.context = self.own

    def report(self) -> dict[str, Any]:
        """Bytes: `device_peak` in all, `device_context` of the bare context, `device_peak_above_context`; None without a GPU."""
        known = self._read is not None
        return {
            "device_measure": self.measure,
            "device_peak": self.peak if known else None,
            "device_context": self.context,
            "device_peak_above_context": self.peak - self.context if self.context is not None else None,
        }


def host_peak() -> int:
    """Most bytes of RAM that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, not inherited from the process that started this one
        for line in status.read_text("utf-8", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _nvml() -> tuple[Callable[[], int], str] | None:
    """NVML's view of the device that CUDA calls 0; it needs no context."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
        handle, memory = ctypes.c_void_p(), _NvmlMemory()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByPciBusId_v2(_bus_id(), ctypes.byref(handle)):
            return None
        if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
            return None
    except (OSError, AttributeError):
        return None

    def read() -> int:
        found = _NvmlMemory()
        nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(found))
        return int(found.used)

    return read, "nvml: change of the device's used memory"


def _bus_id() -> bytes:
    from matchrt.backends.cuda_probe import load_driver

    cuda, text, device = load_driver(), ctypes.create_string_buffer(32), ctypes.c_int()
    cuda.cuInit(0)
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDeviceGetPCIBusId(text, len(text), device)
    return text.value


def _driver() -> tuple[Callable[[], int], str] | None:
    """cuMemGetInfo; its context is made here and so is part of nobody's share."""
    from matchrt.backends.tensorrt.cuda import driver

    try:
        found = driver()
    except MatchrtError:
        return None

    def read() -> int:
        with found.current():
            return found.memory_in_use()

    return read, "cuMemGetInfo: change of the device's used memory, without the context"
