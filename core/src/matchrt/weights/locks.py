"""A lock between processes that a crash releases: the operating system's advisory lock on a file beside the target."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.1


@contextmanager
def exclusive(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; wait for another holder, however long it takes.

    `waiting` is called once if there is another holder. The file stays afterwards (removing it would race). The
    system drops the lock when its holder ends in any way, kill -9 included, so there are no stale locks. Threads of
    one process exclude each other too, because every call opens the file anew.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        told = False
        while not _try_lock(handle):
            if waiting is not None and not told:
                waiting()
                told = True
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(handle)


if sys.platform == "win32":  # pragma: no cover - not run on this project's machines
    import msvcrt

    def _try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
