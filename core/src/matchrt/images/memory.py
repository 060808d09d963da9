"""Memory for pictures that is used again, because fresh memory is dear: the system maps and clears every page of it anew, one thread
of a process at a time, and that costs more than the arithmetic on a picture does.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

KEPT_BYTES = 256 << 20
"""Most bytes that are kept for the next picture once nobody uses them."""
_SMALL = 1 << 16

_free: dict[int, list[NDArray[np.uint8]]] = {}
_local = threading.local()


class _Loan:
    """Owner of an array's memory, which goes back when the array and all views of it have died. No lock: it may die anywhere."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> None:
        try:
            self._block = _free[nbytes].pop()
        except (KeyError, IndexError):
            self._block = np.empty(nbytes, np.uint8)
        place = self._block.__array_interface__["data"]
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": place}

    def __del__(self) -> None:
        block = getattr(self, "_block", None)
        if block is not None and not sys.is_finalizing():
            _keep(block)


def empty(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """As `np.empty`; the memory of a large array serves another one as soon as the array and its views are gone."""
    kind = np.dtype(dtype)
    nbytes = math.prod(shape) * kind.itemsize
    return np.empty(shape, kind) if nbytes < _SMALL else np.asarray(_Loan(shape, kind, nbytes))


def temporary(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array of float32 that the calling thread gets again, with whatever is in it, when it next asks for `name`.

    For what does not leave a function. The memory goes when the thread ends.
    """
    size = math.prod(shape)
    blocks: dict[str, NDArray[np.float32]] = _local.__dict__
    if name not in blocks or blocks[name].size < size:
        blocks[name] = np.empty(size, np.float32)
    return blocks[name][:size].reshape(shape)


def _keep(block: NDArray[np.uint8]) -> None:
    """For the next of its size, where there is room; memory of other sizes, which is asked for no longer, goes first."""
    held = block.nbytes + sum(size * len(blocks) for size, blocks in list(_free.items()))
    for size in list(_free):
        if held <= KEPT_BYTES or block.nbytes > KEPT_BYTES:
            break
        if size != block.nbytes:
            held -= size * len(_free.pop(size, ()))
    if held <= KEPT_BYTES:
        _free.setdefault(block.nbytes, []).append(block)
