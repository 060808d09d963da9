"""Pairs in order, while others are read, run and finished at the same time: bounded look-ahead, errors at their turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from matchrt.images.opencv import one_thread_a_call
from matchrt.matches import Matches
from matchrt.runtime.prepared import Prepared


@dataclass(frozen=True)
class Jobs:
    """The three parts of the work on a pair. Each may be called from several threads at once."""

    prepare: Callable[[tuple[Any, Any]], Prepared]
    run: Callable[[list[Prepared]], list[Prepared]]
    finish: Callable[[Prepared], Matches]


class _Stream:
    """Queues of one call. `reading` holds pairs that are being prepared, `running` batches, `finishing` results, all in order."""

    def __init__(
        self,
        pairs: Iterable[tuple[Any, Any]],
        jobs: Jobs,
        pool: ThreadPoolExecutor,
        lanes: ThreadPoolExecutor,
        size: int,
    ) -> None:
        self._pairs, self._jobs, self._pool, self._lanes, self._size = iter(pairs), jobs, pool, lanes, size
        self._reading: deque[Future[Prepared]] = deque()
        self._running: deque[tuple[int, Future[list[Prepared]]]] = deque()
        self._finishing: deque[Future[Matches]] = deque()
        self._exhausted = False
        self.failed: Exception | None = None

    def read_ahead(self, limit: int) -> None:
        """Give pairs to the pool until `limit` are on their way."""
        while not self._exhausted and self.failed is None and self._under_way() < limit:
            try:
                pair = next(self._pairs)
            except StopIteration:
                self._exhausted = True
            except Exception as error:
                self._exhausted = True
                failure: Future[Prepared] = Future()
                failure.set_exception(error)
                self._reading.append(failure)
            else:
                self._reading.append(self._pool.submit(self._jobs.prepare, pair))

    def _under_way(self) -> int:
        return len(self._reading) + sum(count for count, _ in self._running) + len(self._finishing)

    def start_batch(self, most: int) -> bool:
        """Give the next batch to a lane, waiting for its pairs; False if `most` are there already or there is no whole batch yet."""
        if len(self._running) >= most or not self._reading or self.failed is not None:
            return False
        if len(self._reading) < self._size and not self._exhausted:
            return False
        batch: list[Prepared] = []
        while self._reading and len(batch) < self._size and self.failed is None:
            try:
                batch.append(self._reading.popleft().result())
            except Exception as error:
                self.failed = error
        if batch:
            self._running.append((len(batch), self._lanes.submit(self._jobs.run, batch)))
        return bool(batch)

    def finish_batch(self) -> None:
        """Wait for the oldest batch and give its pairs to the pool to finish."""
        _, running = self._running.popleft()
        try:
            ready = running.result()
        except Exception as error:
            self.failed = error  # earlier than any failure met while reading ahead
            self.drop_running()
            return
        self._finishing.extend(self._pool.submit(self._jobs.finish, r) for r in ready)

    def drop_running(self) -> None:
        """Forget batches behind one that failed."""
        for _, running in self._running:
            running.cancel()
        self._running.clear()

    @property
    def running(self) -> bool:
        """Whether batches are in lanes."""
        return bool(self._running)

    @property
    def ended(self) -> bool:
        """Whether nothing more will run."""
        return self.failed is not None or (self._exhausted and not self._reading)

    def results(self, keep: int) -> Iterator[Matches]:
        """Finished pairs in order, all but the last `keep` and those that are done anyway."""
        while self._finishing and (len(self._finishing) > keep or self._finishing[0].done()):
            yield self._finishing.popleft().result()

    def cancel(self) -> None:
        """Let go of everything that has not begun."""
        for reading in self._reading:
            reading.cancel()
        for finishing in self._finishing:
            finishing.cancel()
        for _, running in self._running:
            running.cancel()


def stream(
    pairs: Iterable[tuple[Any, Any]],
    jobs: Jobs,
    lanes: ThreadPoolExecutor,
    *,
    batch_size: int,
    workers: int,
    ahead: int,
) -> Iterator[Matches]:
    """Matches of `pairs`, in order. `ahead` bounds the pairs that are on their way; `lanes` runs batches, one a thread and one waiting.

    Whatever a pair raises is raised at its turn, and ends the stream. With several `workers`, OpenCV works without threads of its own
    meanwhile.
    """
    calm = one_thread_a_call() if workers > 1 else nullcontext()
    with calm, ThreadPoolExecutor(workers, thread_name_prefix="matchrt-read") as pool:
        state = _Stream(pairs, jobs, pool, lanes, batch_size)
        most = lanes._max_workers + 1  # one waits behind each that runs, so that no lane stands still
        try:
            while True:
                state.read_ahead(ahead)
                while state.start_batch(most):
                    state.read_ahead(ahead)
                if state.running:
                    state.finish_batch()
                    yield from state.results(keep=batch_size)
                else:
                    yield from state.results(keep=0)
                    if state.ended:
                        break
            if state.failed is not None:
                raise state.failed
        finally:
            state.cancel()
