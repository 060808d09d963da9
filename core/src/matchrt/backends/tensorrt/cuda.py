"""The CUDA driver through ctypes: primary context, memory copies, streams, events and graphs. No package is needed.

Every handle lives in the device's primary context, the one that torch, cupy and TensorRT use; no context is ever created.
Names and numbers are those of cuda.h, which are stable. Proven against a stand-in library that checks contexts and handles; the
receipts under `docs/benchmarks` say what ran on a GPU.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

from matchrt.backends.cuda_probe import load_driver
from matchrt.errors import BackendError, EnvironmentLackError

_HANDLE, _OUT = c_void_p, POINTER(c_void_p)
_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (_OUT, c_int),
    "cuCtxGetCurrent": (_OUT,),
    "cuCtxPushCurrent_v2": (_HANDLE,),
    "cuCtxPopCurrent_v2": (_OUT,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (_OUT, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, _HANDLE),
    "cuStreamCreate": (_OUT, c_uint),
    "cuStreamDestroy_v2": (_HANDLE,),
    "cuStreamSynchronize": (_HANDLE,),
    "cuStreamWaitEvent": (_HANDLE, _HANDLE, c_uint),
    "cuStreamBeginCapture_v2": (_HANDLE, c_int),
    "cuStreamEndCapture": (_HANDLE, _OUT),
    "cuEventCreate": (_OUT, c_uint),
    "cuEventRecord": (_HANDLE, _HANDLE),
    "cuEventQuery": (_HANDLE,),
    "cuEventSynchronize": (_HANDLE,),
    "cuEventDestroy_v2": (_HANDLE,),
    "cuEventElapsedTime": (POINTER(c_float), _HANDLE, _HANDLE),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuGraphInstantiateWithFlags": (_OUT, _HANDLE, c_ulonglong),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuGraphDestroy": (_HANDLE,),
}
_BRIEF = frozenset(
    {
        *("cuCtxGetCurrent", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2"),
        *("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"),
        *("cuEventCreate", "cuEventRecord", "cuEventQuery", "cuEventDestroy_v2", "cuStreamWaitEvent"),
    }
)
"""Calls that note work down and return within microseconds. They keep Python's lock: a thread that gave it up for each of them would
queue for it behind the threads that read images, again and again, and wait longer for its turn than for the device."""
_PORTABLE, _NON_BLOCKING, _NO_TIMING, _THREAD_LOCAL, _NOT_READY = 1, 1, 2, 1, 600


class CudaError(BackendError):
    """The driver refused a call. `code` is its CUresult."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"CUDA: {call} failed with {name} ({code})")
        self.code = code


class Driver:
    """One device's primary context and the calls that matchrt needs. Shared by threads."""

    def __init__(self, library: Any, index: int = 0) -> None:
        self.index = index
        self._library = library
        brief = ctypes.PyDLL(library._name, handle=library._handle)
        self._functions = {n: getattr(brief if n in _BRIEF else library, n) for n in _PROTOTYPES}
        for name, function in self._functions.items():
            function.argtypes, function.restype = _PROTOTYPES[name], c_int
        self._call("cuInit", 0)
        device, context = c_int(), c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), index)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device.value)
        self._context = context.value
        self._local = threading.local()

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._functions[name](*arguments)
        if code:
            text = c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(text))
            raise CudaError(name, code, (text.value or b"an unknown error").decode())

    def _make(self, name: str, *arguments: Any) -> int:
        handle = c_void_p()
        self._call(name, ctypes.byref(handle), *arguments)
        return int(handle.value or 0)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Run the block with the primary context current, and leave the thread as it was."""
        found = c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(found))
        if found.value == self._context:
            yield
            return
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(found))

    def thread_stream(self) -> int:
        """The calling thread's own stream; all its sessions share it, so what one writes another may read without waiting."""
        if not hasattr(self._local, "stream"):
            with self.current():
                self._local.stream = self._make("cuStreamCreate", _NON_BLOCKING)
        return int(self._local.stream)

    def allocate(self, nbytes: int) -> int:
        """Address of device memory."""
        pointer = c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), max(nbytes, 1))
        return int(pointer.value)

    def free(self, pointer: int) -> None:
        """Give device memory back."""
        self._call("cuMemFree_v2", pointer)

    def allocate_pinned(self, nbytes: int) -> int:
        """Address of page-locked host memory."""
        return self._make("cuMemHostAlloc", max(nbytes, 1), _PORTABLE)

    def free_pinned(self, pointer: int) -> None:
        """Give page-locked memory back."""
        self._call("cuMemFreeHost", pointer)

    def to_device(self, device: int, host: int, nbytes: int, stream: int) -> None:
        """Copy from page-locked host memory, in the order of `stream`."""
        if nbytes:
            self._call("cuMemcpyHtoDAsync_v2", device, host, nbytes, stream)

    def to_host(self, host: int, device: int, nbytes: int, stream: int) -> None:
        """Copy to page-locked host memory, in the order of `stream`."""
        if nbytes:
            self._call("cuMemcpyDtoHAsync_v2", host, device, nbytes, stream)

    def synchronize(self, stream: int) -> None:
        """Wait until all work of `stream` is done."""
        self._call("cuStreamSynchronize", stream)

    def event(self, timing: bool = False) -> int:
        """A new event; with `timing` it can be asked by `elapsed`."""
        return self._make("cuEventCreate", 0 if timing else _NO_TIMING)

    def elapsed(self, begin: int, end: int) -> float:
        """Seconds between two events that were made with `timing` and have passed."""
        milliseconds = c_float()
        self._call("cuEventElapsedTime", ctypes.byref(milliseconds), begin, end)
        return milliseconds.value / 1e3

    def memory_in_use(self) -> int:
        """Bytes of the device's memory in use, by whatever process."""
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    def record(self, event: int, stream: int) -> None:
        """Let `event` stand for the work of `stream` so far."""
        self._call("cuEventRecord", event, stream)

    def wait_on_host(self, event: int) -> None:
        """Wait until the work that `event` stands for is done."""
        if self._functions["cuEventQuery"](event) == _NOT_READY:
            self._call("cuEventSynchronize", event)

    def wait(self, stream: int, event: int) -> None:
        """Let later work of `stream` wait for `event`; the host does not wait."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def free_event(self, event: int) -> None:
        """Give an event back."""
        self._call("cuEventDestroy_v2", event)

    def order(self, before: int, after: int) -> None:
        """Let later work of stream `after` wait for all work of stream `before` so far."""
        if before == after:
            return
        event = self.event()
        try:
            self.record(event, before)
            self.wait(after, event)
        finally:
            self.free_event(event)  # the driver keeps it until its work is done

    def begin_capture(self, stream: int) -> None:
        """Record the work that this thread puts on `stream` instead of running it."""
        self._call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The recorded work as an executable graph."""
        graph = c_void_p()
        self._call("cuStreamEndCapture", stream, ctypes.byref(graph))
        if not graph.value:
            raise CudaError("cuStreamEndCapture", 901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        try:
            return self._make("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def abort_capture(self, stream: int) -> None:
        """End a capture that failed and forget what it recorded."""
        graph = c_void_p()
        self._library.cuStreamEndCapture(stream, ctypes.byref(graph))
        if graph.value:
            self._library.cuGraphDestroy(graph)

    def launch(self, graph: int, stream: int) -> None:
        """Run an executable graph, in the order of `stream`."""
        self._call("cuGraphLaunch", graph, stream)

    def free_graph(self, graph: int) -> None:
        """Give an executable graph back."""
        self._call("cuGraphExecDestroy", graph)


_drivers: dict[int, Driver] = {}
_lock = threading.Lock()


def driver(index: int = 0) -> Driver:
    """The driver of device `index`, made at first use. Raises `EnvironmentLackError` without an NVIDIA driver, `CudaError`."""
    with _lock:
        if index not in _drivers:
            try:
                library = load_driver()
            except OSError as error:
                raise EnvironmentLackError(f"no NVIDIA driver is installed: {error}") from None
            _drivers[index] = Driver(library, index)
        return _drivers[index]
