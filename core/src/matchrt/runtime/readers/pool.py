"""As many reader processes as pairs are prepared at a time."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from matchrt.errors import BackendError
from matchrt.model import Settings
from matchrt.plugins.dispatch import MatcherHooks
from matchrt.runtime.prepared import Prepared
from matchrt.runtime.readers.reader import Reader


class ReaderPool:
    """Reader processes for one matcher. They are started when they are first needed and stay until `close`, or until the pool is
    collected. `prepare` may be called from several threads; each call has a process to itself.
    """

    def __init__(self, hooks: MatcherHooks) -> None:
        self._matcher_id = hooks.matcher.id
        self._owner = hooks.plugins.owner(hooks.matcher).found
        self._lock = threading.Lock()
        self._readers: list[Reader] = []
        self._free: list[Reader] = []
        self._closed = False
        self._finalizer = weakref.finalize(self, _end, self._readers)

    @property
    def pids(self) -> tuple[int, ...]:
        """Numbers of the processes that are there."""
        with self._lock:
            return tuple(r.pid for r in self._readers if r.alive)

    def prepare(self, pair: tuple[Any, Any], settings: Settings) -> Prepared:
        """Read and preprocess one pair in a process of its own. Raises as `Reader` and `Reader.prepare` do."""
        reader = self._take()
        try:
            return reader.prepare(pair, settings)
        finally:
            self._give_back(reader)

    def close(self) -> None:
        """End the processes. Later calls raise `BackendError`."""
        with self._lock:
            self._closed = True
            self._free.clear()
        self._finalizer()

    def _take(self) -> Reader:
        with self._lock:
            if self._closed:
                raise BackendError("the reader processes have ended: the matcher is closed")
            if self._free:
                return self._free.pop()
        reader = Reader(self._matcher_id, self._owner)
        with self._lock:
            closed = bool(self._closed)
            if not closed:
                self._readers.append(reader)
        if closed:  # meanwhile
            reader.end()
            raise BackendError("the reader processes have ended: the matcher is closed")
        return reader

    def _give_back(self, reader: Reader) -> None:
        with self._lock:
            if reader.alive and not self._closed:
                self._free.append(reader)
            elif reader in self._readers:
                self._readers.remove(reader)


def _end(readers: list[Reader]) -> None:
    for reader in readers:
        reader.hang_up()
    while readers:
        readers.pop().end()
