"""How many threads OpenCV uses: a setting of the whole process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Alone:
    def __init__(self) -> None:
        self.lock, self.users, self.before = threading.Lock(), 0, 0


_alone = _Alone()


@contextmanager
def one_thread_a_call() -> Iterator[None]:
    """While any such block is open, in whatever thread, OpenCV does a call's work in the thread that calls. What was set before comes
    back with the last one.

    For pictures that are prepared by several threads already: each call would wake a pool of as many threads as there are cores.
    """
    import cv2

    with _alone.lock:
        if not _alone.users:
            _alone.before = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _alone.users += 1
    try:
        yield
    finally:
        with _alone.lock:
            _alone.users -= 1
            if not _alone.users:
                cv2.setNumThreads(_alone.before)
