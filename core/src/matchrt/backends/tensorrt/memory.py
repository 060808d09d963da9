"""Who hands out device and page-locked memory: torch where it is loaded, cuda-python, pycuda, or the bare driver.

Copies, streams and graphs go through the driver whoever allocated, because all of it lives in the primary context. pycuda is
used on the primary context, retained and pushed around each call: never `pycuda.autoinit`, whose own context would part it from
torch and TensorRT. Only the driver's and torch's CPU-side code were run so far without a GPU; receipts name what ran on one.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from matchrt.backends.tensorrt.cuda import Driver
from matchrt.errors import BackendError, EnvironmentLackError


@dataclass
class Block:
    """Memory at `pointer`. `owner` keeps it alive; `release` gives it back (None: dropping the owner does)."""

    pointer: int
    nbytes: int
    owner: Any = None
    release: Callable[[int], None] | None = None

    def free(self) -> None:
        """Give it back; a second call does nothing."""
        release, self.release, self.owner = self.release, None, None
        if release is not None and self.pointer:
            release(self.pointer)
        self.pointer = 0

    @cached_property
    def bytes(self) -> np.ndarray:
        """Page-locked memory as an array (nbytes,) of uint8."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.nbytes).from_address(self.pointer))

    def host(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int = 0) -> np.ndarray:
        """The part of `bytes` from `offset` on as an array of `shape`."""
        nbytes = math.prod(shape) * dtype.itemsize
        return self.bytes[offset : offset + nbytes].view(dtype).reshape(shape)


class Memory(Protocol):
    """A provider of memory on one device."""

    name: str

    def device(self, nbytes: int) -> Block:
        """Device memory."""

    def pinned(self, nbytes: int) -> Block:
        """Page-locked host memory."""


class DriverMemory:
    """The bare driver."""

    name = "driver"

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def device(self, nbytes: int) -> Block:
        """Device memory."""
        return Block(self._driver.allocate(nbytes), nbytes, None, self._driver.free)

    def pinned(self, nbytes: int) -> Block:
        """Page-locked host memory."""
        return Block(self._driver.allocate_pinned(nbytes), nbytes, None, self._driver.free_pinned)


class TorchMemory:
    """torch's caching allocator, so that both share one pool."""

    name = "torch"

    def __init__(self, driver: Driver) -> None:
        self._torch: Any = sys.modules["torch"]
        self._device = f"cuda:{driver.index}"

    def device(self, nbytes: int) -> Block:
        """Device memory."""
        tensor = self._torch.empty(max(nbytes, 1), dtype=self._torch.uint8, device=self._device)
        return Block(int(tensor.data_ptr()), nbytes, tensor)

    def pinned(self, nbytes: int) -> Block:
        """Page-locked host memory."""
        tensor = self._torch.empty(max(nbytes, 1), dtype=self._torch.uint8, pin_memory=True)
        return Block(int(tensor.data_ptr()), nbytes, tensor)


class CudaPythonMemory:
    """cuda-python's runtime bindings."""

    name = "cuda-python"

    def __init__(self, driver: Driver) -> None:
        from cuda.bindings import runtime

        self._runtime: Any = runtime

    def _checked(self, call: str, *arguments: Any) -> Any:
        code, *values = getattr(self._runtime, call)(*arguments)
        if int(code):
            raise BackendError(f"CUDA: {call} failed with {getattr(code, 'name', code)}")
        return values[0] if values else None

    def device(self, nbytes: int) -> Block:
        """Device memory."""
        pointer = int(self._checked("cudaMalloc", max(nbytes, 1)))
        return Block(pointer, nbytes, None, lambda p: self._checked("cudaFree", p))

    def pinned(self, nbytes: int) -> Block:
        """Page-locked host memory."""
        pointer = int(self._checked("cudaHostAlloc", max(nbytes, 1), 1))
        return Block(pointer, nbytes, None, lambda p: self._checked("cudaFreeHost", p))


class PycudaMemory:
    """pycuda on the primary context."""

    name = "pycuda"

    def __init__(self, driver: Driver) -> None:
        import pycuda.driver

        self._cuda: Any = pycuda.driver
        self._cuda.init()
        self._context = self._cuda.Device(driver.index).retain_primary_context()

    def _inside(self, call: Callable[[], Any]) -> Any:
        self._context.push()
        try:
            return call()
        finally:
            self._context.pop()

    def device(self, nbytes: int) -> Block:
        """Device memory."""
        memory = self._inside(lambda: self._cuda.mem_alloc(max(nbytes, 1)))
        return Block(int(memory), nbytes, memory, lambda _: self._inside(memory.free))

    def pinned(self, nbytes: int) -> Block:
        """Page-locked host memory."""
        array = self._inside(lambda: self._cuda.pagelocked_empty(max(nbytes, 1), np.uint8))
        return Block(int(array.ctypes.data), nbytes, array)


@dataclass
class Pool:
    """Device memory for outputs, by size; what was handed out comes back when its `DeviceTensor` dies, in any thread."""

    memory: Memory
    free: dict[int, list[Block]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False

    def take(self, nbytes: int) -> Block:
        """Memory of exactly `nbytes`, used before if there is some."""
        with self.lock:
            spare = self.free.get(nbytes)
            if spare:
                return spare.pop()
        return self.memory.device(nbytes)

    def give_back(self, block: Block) -> bool:
        """Keep it for the next that asks; False if the pool is closed, and it is left to the caller to free."""
        with self.lock:
            if not self.closed:
                self.free.setdefault(block.nbytes, []).append(block)
            return not self.closed

    def close(self) -> None:
        """Free what is not handed out; the rest is not taken back."""
        with self.lock:
            self.closed = True
            spare = [b for blocks in self.free.values() for b in blocks]
            self.free.clear()
        for block in spare:
            block.free()


@dataclass
class Harbour:
    """Page-locked memory through which arrays leave for the device and come from it; kept, and made larger when one needs more room."""

    memory: Memory
    lock: threading.Lock = field(default_factory=threading.Lock)
    block: Block | None = None
    closed: bool = False

    @contextmanager
    def room(self, nbytes: int) -> Iterator[Block]:
        """At least `nbytes` for the time of the block, in which copies must end; nobody else gets it meanwhile."""
        with self.lock:
            if self.block is None or self.block.nbytes < nbytes:
                self._release()
                self.block = self.memory.pinned(max(nbytes, 1))
            try:
                yield self.block
            finally:
                if self.closed:
                    self._release()

    def close(self) -> None:
        """Free the memory; what still comes after gets memory for that time only."""
        with self.lock:
            self.closed = True
            self._release()

    def _release(self) -> None:
        block, self.block = self.block, None
        if block is not None:
            block.free()


PROVIDERS: dict[str, Callable[[Driver], Memory]] = {
    "torch": TorchMemory,
    "cuda-python": CudaPythonMemory,
    "pycuda": PycudaMemory,
    "driver": DriverMemory,
}
"""By name, in the order in which they are preferred."""


def choose_memory(driver: Driver, name: str | None = None) -> Memory:
    """The provider called `name`, or the first that is at hand; torch only where something else has loaded it already.

    Raises `EnvironmentLackError` where the named one is missing or unknown.
    """
    if name is not None:
        if name not in PROVIDERS:
            raise EnvironmentLackError(f"no memory provider is called {name!r}", hint=f"known: {', '.join(PROVIDERS)}")
        if not _at_hand(name):
            raise EnvironmentLackError(f"memory provider {name!r} is not at hand", hint="install it, or name another")
        return PROVIDERS[name](driver)
    return PROVIDERS[next(n for n in PROVIDERS if _at_hand(n))](driver)


def _at_hand(name: str) -> bool:
    if name == "torch":
        torch: Any = sys.modules.get("torch")
        return torch is not None and bool(torch.cuda.is_available())
    module = {"cuda-python": "cuda.bindings.runtime", "pycuda": "pycuda.driver"}.get(name)
    try:
        return module is None or importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
