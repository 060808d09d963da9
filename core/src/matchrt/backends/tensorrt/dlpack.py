"""DLPack capsules read and made through ctypes, so that device arrays change hands without torch or cupy.

Layout of DLManagedTensor: dlpack.h, version 0.8 (the unversioned form, which every consumer and producer speaks).
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p, py_object
from typing import Any

import numpy as np

from matchrt.errors import BackendError

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_NAME, _USED = b"dltensor", b"used_dltensor"


class _Device(ctypes.Structure):
    _fields_ = (("type", c_int32), ("index", c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device", _Device),
        ("ndim", c_int32),
        ("dtype", _Type),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_DELETER = ctypes.CFUNCTYPE(None, POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", c_void_p), ("deleter", _DELETER))

_api = ctypes.pythonapi
_api.PyCapsule_IsValid.argtypes, _api.PyCapsule_IsValid.restype = (py_object, c_char_p), ctypes.c_int
_api.PyCapsule_GetPointer.argtypes, _api.PyCapsule_GetPointer.restype = (py_object, c_char_p), c_void_p
_api.PyCapsule_SetName.argtypes, _api.PyCapsule_SetName.restype = (py_object, c_char_p), ctypes.c_int
_DESTRUCTOR = ctypes.CFUNCTYPE(None, c_void_p)
_api.PyCapsule_New.argtypes, _api.PyCapsule_New.restype = (c_void_p, c_char_p, _DESTRUCTOR), py_object
_raw_valid = ctypes.CFUNCTYPE(ctypes.c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", _api))
_raw_pointer = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", _api))


class Imported:
    """A tensor taken over from a capsule: address, shape and dtype; the producer's memory lives as long as this object."""

    def __init__(self, capsule: Any) -> None:
        if not _api.PyCapsule_IsValid(capsule, _NAME):
            raise BackendError("a __dlpack__ capsule was used before, or is of a newer kind")
        managed = ctypes.cast(_api.PyCapsule_GetPointer(capsule, _NAME), POINTER(_Managed))
        _api.PyCapsule_SetName(capsule, _USED)
        self._managed: Any = managed
        tensor = managed.contents.tensor
        self.device_type, self.device_index = int(tensor.device.type), int(tensor.device.index)
        self.shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
        self.dtype = _dtype(tensor.dtype)
        self.pointer = int(tensor.data or 0) + int(tensor.byte_offset)
        if tensor.strides:
            strides = tuple(tensor.strides[i] for i in range(tensor.ndim))
            self.contiguous = is_contiguous(self.shape, strides)
        else:
            self.contiguous = True

    def __del__(self) -> None:
        managed, self._managed = getattr(self, "_managed", None), None
        if managed is not None and managed.contents.deleter:
            managed.contents.deleter(managed)


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether `strides` (in elements) are those of a C-ordered array of `shape`."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True


def _dtype(kind: _Type) -> np.dtype[Any]:
    codes = {v: k for k, v in _CODES.items()}
    letter = codes.get(kind.code)
    if letter is None or kind.lanes != 1 or (letter == "b" and kind.bits != 8):
        raise BackendError(f"a __dlpack__ tensor has a type that numpy lacks (code {kind.code}, {kind.bits} bits)")
    return np.dtype(bool if letter == "b" else f"{letter}{kind.bits // 8}")


_alive: dict[int, Any] = {}
"""What exported capsules refer to, by address, until their consumers are done."""


def _deleted(managed: Any) -> None:
    _alive.pop(ctypes.addressof(managed.contents), None)


def _destroyed(capsule: int) -> None:
    if _raw_valid(capsule, _NAME):  # nobody took it
        _alive.pop(int(_raw_pointer(capsule, _NAME)), None)


_delete, _destroy = _DELETER(_deleted), _DESTRUCTOR(_destroyed)


def export(owner: Any, pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: tuple[int, int]) -> Any:
    """A capsule for C-ordered memory at `pointer`; `owner` lives until the consumer is done with it."""
    managed = _Managed()
    sizes = (c_int64 * max(len(shape), 1))(*shape)
    tensor = managed.tensor
    tensor.data, tensor.ndim, tensor.byte_offset = pointer, len(shape), 0
    tensor.device.type, tensor.device.index = device
    tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = _CODES[dtype.kind], dtype.itemsize * 8, 1
    tensor.shape = ctypes.cast(sizes, POINTER(c_int64))
    managed.deleter = _delete
    address = ctypes.addressof(managed)
    _alive[address] = (managed, sizes, owner)
    return _api.PyCapsule_New(address, _NAME, _destroy)
