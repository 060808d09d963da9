"""Memory that engines use while they run, shared by engines that run one after another.

A pair goes through several networks in turn. With memory of its own each would hold what only one needs at a time, so execution
contexts are made without, and all that run on one stream of one thread are given the same: their work there is in order. Another
thread, or another stream, has another.

From TensorRT 8.6 on the calls exist under two pairs of names (see `_api.CAPABILITIES`). TensorRT-RTX keeps its own memory: what its
engines need was never tried on a GPU.
"""

from __future__ import annotations

import sys
import threading
from typing import Any
from weakref import WeakValueDictionary

from matchrt.backends.tensorrt._api import TrtApi
from matchrt.backends.tensorrt.cuda import Driver
from matchrt.backends.tensorrt.memory import Block, Memory

_lock = threading.Lock()
_known: WeakValueDictionary[tuple[int, int, int], Scratch] = WeakValueDictionary()


def can_share(api: TrtApi) -> bool:
    """Whether contexts of this binding can be given their memory."""
    return api.name == "tensorrt" and (api.has("user-managed") or api.has("bare-context"))


def new_context(api: TrtApi, engine: Any, *, shared: bool) -> Any:
    """An `IExecutionContext`, without memory of its own where it is `shared`; None where TensorRT has no memory for it."""
    if not shared:
        return engine.create_execution_context()
    if api.has("user-managed"):
        return engine.create_execution_context(api.enum("ExecutionContextAllocationStrategy", "USER_MANAGED"))
    return engine.create_execution_context_without_device_memory()


def scratch_bytes(api: TrtApi, engine: Any) -> int:
    """What a context of `engine` needs, for its largest shapes."""
    if api.has("memory-size-v2"):
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size) if api.has("memory-size") else 0


def give_scratch(api: TrtApi, context: Any, pointer: int, nbytes: int) -> None:
    """Let `context` use `nbytes` at `pointer` from its next run on."""
    if api.has("set-memory"):
        context.set_device_memory(pointer, nbytes)
    else:
        context.device_memory = pointer


class Scratch:
    """One piece of device memory for all engines that run on a stream of a thread; it grows to what the largest of them needs.

    Whoever uses it holds a reference; the last one to let go frees it.
    """

    def __init__(self, cuda: Driver, stream: int) -> None:
        self._cuda, self._stream = cuda, stream
        self._block: Block | None = None

    def reserve(self, memory: Memory, nbytes: int) -> int:
        """The address of at least `nbytes`. It changes when the memory grows, which waits for the work that uses the old one."""
        if self._block is None or self._block.nbytes < nbytes:
            if self._block is not None:
                self._cuda.synchronize(self._stream)
                self._block.free()
                self._block = None
            self._block = memory.device(nbytes)
        return self._block.pointer

    def __del__(self) -> None:
        block = getattr(self, "_block", None)
        if block is not None and not sys.is_finalizing():
            with self._cuda.current():
                block.free()


def scratch_of(cuda: Driver, stream: int) -> Scratch:
    """The one of the calling thread and `stream`; made if nobody holds one."""
    key = (cuda.index, threading.get_ident(), stream)
    with _lock:
        found = _known.get(key)
        if found is None:
            found = _known[key] = Scratch(cuda, stream)
        return found
