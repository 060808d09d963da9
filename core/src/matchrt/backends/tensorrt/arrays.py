"""Arrays on the device: our own, which others read without a copy, and views of theirs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from matchrt.backends.tensorrt import dlpack
from matchrt.backends.tensorrt.cuda import Driver
from matchrt.backends.tensorrt.memory import Block, Harbour
from matchrt.errors import BackendError

_ALIGNED = 64
"""Bytes at whose multiples an array begins on the host."""


class DeviceTensor:
    """An output on the device: C-ordered, valid as long as this object or a view made of it lives.

    It speaks `__cuda_array_interface__` (cupy, torch, numba, pycuda) and `__dlpack__`. Work that wrote it may still be under way:
    both protocols tell the consumer which stream to wait for. Its memory goes back to the session when it dies.
    """

    def __init__(
        self,
        driver: Driver,
        block: Block,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        stream: int,
        give_back: Callable[[Block], None],
        harbour: Harbour,
    ) -> None:
        self.shape, self.dtype, self.stream = shape, dtype, stream
        self._driver, self._block, self._give_back, self._harbour = driver, block, give_back, harbour

    def __del__(self) -> None:
        give_back = getattr(self, "_give_back", None)
        if give_back is not None and not sys.is_finalizing():
            give_back(self._block)

    def __repr__(self) -> str:
        return f"DeviceTensor({self.dtype}{list(self.shape)}, device {self._driver.index})"

    @property
    def pointer(self) -> int:
        """Device address."""
        return self._block.pointer

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; `stream` is the one to wait for."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer if self.nbytes else 0, False),
            "version": 3,
            "strides": None,
            "stream": self.stream,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """(CUDA, device index)."""
        return dlpack.CUDA, self._driver.index

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        """A capsule; `stream` is the consumer's, which is made to wait (None: the legacy default stream, -1: no waiting)."""
        if stream != -1:
            with self._driver.current():
                self._driver.order(self.stream, 1 if stream is None else stream)
        return dlpack.export(self, self.pointer, self.shape, self.dtype, self.__dlpack_device__())

    def numpy(self) -> np.ndarray:
        """A copy on the host; waits for the work that wrote it."""
        return self.numpy_of([self])[0]

    @staticmethod
    def numpy_of(tensors: Sequence[DeviceTensor]) -> list[np.ndarray]:
        """Copies of several on the host, which wait for the device only once; all are of one device."""
        if not tensors:
            return []
        driver, harbour = tensors[0]._driver, tensors[0]._harbour
        *starts, size = 0, *accumulate(-(-t.nbytes // _ALIGNED) * _ALIGNED for t in tensors)
        with driver.current(), harbour.room(size) as landing:
            for tensor, start in zip(tensors, starts, strict=True):
                driver.to_host(landing.pointer + start, tensor.pointer, tensor.nbytes, tensor.stream)
            for stream in {t.stream for t in tensors}:
                driver.synchronize(stream)
            return [landing.host(t.shape, t.dtype, s).copy() for t, s in zip(tensors, starts, strict=True)]


@dataclass
class View:
    """Somebody's array on the device. `owner` keeps its memory alive."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any


def is_device_array(value: Any) -> bool:
    """Whether `value` lies on a device (numpy arrays speak `__dlpack__` too, for the CPU)."""
    if isinstance(value, np.ndarray):
        return False
    return isinstance(value, DeviceTensor) or hasattr(value, "__cuda_array_interface__") or _on_cuda(value)


def view(value: Any, driver: Driver, stream: int) -> View:
    """`value` for reading on `stream`, without a copy, after the work that wrote it.

    Raises `BackendError` for another device, another order than C, and what speaks neither protocol.
    """
    if isinstance(value, DeviceTensor):
        driver.order(value.stream, stream)
        return View(value.pointer, value.shape, value.dtype, value)
    interface = _interface(value)
    if interface is not None:
        return _from_interface(value, interface, driver, stream)
    if not hasattr(value, "__dlpack__"):
        raise BackendError(f"{type(value).__name__} is neither a numpy array nor an array on a device")
    taken = dlpack.Imported(value.__dlpack__(stream=stream))
    if taken.device_type not in (dlpack.CUDA, dlpack.CUDA_MANAGED) or taken.device_index != driver.index:
        raise BackendError(
            f"the array lies on device {taken.device_type}:{taken.device_index}, not CUDA {driver.index}"
        )
    if not taken.contiguous:
        raise BackendError("an array on the device must be contiguous in C order", hint="call .contiguous() or copy it")
    return View(taken.pointer, taken.shape, taken.dtype, taken)


def _on_cuda(value: Any) -> bool:
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in (dlpack.CUDA, dlpack.CUDA_MANAGED)


def _interface(value: Any) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] | None = getattr(value, "__cuda_array_interface__", None)
    except Exception as error:  # torch raises for tensors on the CPU and for those that need a gradient
        raise BackendError(f"{type(value).__name__} cannot be read on the device: {error}") from None
    return found


def _from_interface(value: Any, interface: dict[str, Any], driver: Driver, stream: int) -> View:
    shape, dtype = tuple(int(s) for s in interface["shape"]), np.dtype(interface["typestr"])
    if interface.get("mask") is not None:
        raise BackendError("masked arrays on the device are not supported")
    strides = interface.get("strides")
    if strides is not None:
        steps = tuple(int(s) // dtype.itemsize for s in strides)
        if not dlpack.is_contiguous(shape, steps):
            raise BackendError("an array on the device must be contiguous in C order", hint="call .contiguous()")
    other = _device_index(value)
    if other is not None and other != driver.index:
        raise BackendError(f"the array lies on CUDA device {other}, the engine on {driver.index}")
    before = _writer_stream(value, interface)
    if before is not None:
        driver.order(before, stream)
    return View(int(interface["data"][0] or 0), shape, dtype, value)


def _device_index(value: Any) -> int | None:
    device = getattr(value, "device", None)
    index = getattr(device, "index", getattr(device, "id", None))
    return index if isinstance(index, int) else None


def _writer_stream(value: Any, interface: dict[str, Any]) -> int | None:
    """The stream whose work must be done before `value` may be read; torch names none and means its current one."""
    given = interface.get("stream")
    if given is not None:
        return int(given)
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return int(torch.cuda.current_stream(value.device).cuda_stream)
    return None


def as_dtype(array: np.ndarray, dtype: np.dtype[Any], what: str) -> np.ndarray:
    """`array` as the engine wants it. Integers may change width if every value fits (TensorRT 8 has no int64); floats may not.

    Raises `BackendError`.
    """
    if array.dtype == dtype:
        return array
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        info = np.iinfo(dtype)
        if array.size == 0 or (int(array.min()) >= info.min and int(array.max()) <= info.max):
            return array.astype(dtype)
        raise BackendError(f"{what} has values that do not fit into {dtype}")
    raise BackendError(f"{what} is {array.dtype}, the engine takes {dtype}")
