"""Messages between a reader process and its parent: pickles on a pipe, their large arrays in memory that both see.

Only a process and the child that it started itself talk so; nothing that comes from outside is unpickled.
"""

from __future__ import annotations

import mmap
import os
import pickle
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from matchrt.images.memory import empty

SMALL = 1 << 14
"""Arrays of fewer bytes travel in the message itself."""
_ALIGNED = 64
_STEP = 1 << 20

Span = tuple[int, int]
"""Where an array's bytes lie: offset and count."""


def new_memory() -> int | None:
    """A file in memory that has no name (Linux), inheritable; None where there is no such thing, and messages carry everything."""
    create = getattr(os, "memfd_create", None)
    if create is None:
        return None
    try:
        descriptor: int = create("matchrt-reader")
    except OSError:  # a sandbox may forbid it
        return None
    return descriptor


class Outbox:
    """The end that writes `stream`; large arrays go into the file `memory`, which grows as they need."""

    def __init__(self, stream: BinaryIO, memory: int | None = None) -> None:
        self._stream, self._memory = stream, memory
        self._map: mmap.mmap | None = None

    def send(self, message: object) -> None:
        """Send `message`. What was sent before must have been received: its memory is used again."""
        buffers: list[memoryview] = []

        def take(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < SMALL:
                return True
            buffers.append(raw)
            return False

        callback = None if self._memory is None else take
        body = pickle.dumps(message, protocol=5, buffer_callback=callback)
        head = pickle.dumps((len(body), self._place(buffers)))
        self._stream.write(len(head).to_bytes(4, "little") + head + body)
        self._stream.flush()

    def _place(self, buffers: Sequence[memoryview]) -> list[Span]:
        spans: list[Span] = []
        end = 0
        for buffer in buffers:
            spans.append((end, buffer.nbytes))
            end += -(-buffer.nbytes // _ALIGNED) * _ALIGNED
        if buffers:
            target = np.frombuffer(self._mapped(end), np.uint8)
            for buffer, (start, count) in zip(buffers, spans, strict=True):
                np.copyto(target[start : start + count], np.frombuffer(buffer, np.uint8))
        return spans

    def _mapped(self, size: int) -> mmap.mmap:
        assert self._memory is not None
        if self._map is None or len(self._map) < size:
            size = -(-size // _STEP) * _STEP
            os.ftruncate(self._memory, size)
            self._map = mmap.mmap(self._memory, size)
        return self._map


class Inbox:
    """The end that reads `stream`, and the arrays in `memory`."""

    def __init__(self, stream: BinaryIO, memory: int | None = None) -> None:
        self._stream, self._memory = stream, memory
        self._map: mmap.mmap | None = None

    def receive(self) -> Any:
        """The next message, with arrays of its own. Raises `EOFError` where the other side is gone."""
        length, spans = pickle.loads(self._exactly(int.from_bytes(self._exactly(4), "little")))
        body = self._exactly(length)
        return pickle.loads(body, buffers=[self._copy(s) for s in spans])

    def _exactly(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def _copy(self, span: Span) -> memoryview:
        start, count = span
        if self._map is None or len(self._map) < start + count:
            assert self._memory is not None
            self._map = mmap.mmap(self._memory, os.fstat(self._memory).st_size, access=mmap.ACCESS_READ)
        array = empty((count,), np.uint8)
        np.copyto(array, np.frombuffer(self._map, np.uint8, count, start))
        return memoryview(array.data)
