"""What a worker measures, call by call: samples are seconds of one call, which runs one batch of pairs."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import cycle, islice, pairwise
from typing import Any, Protocol

import numpy as np

from matchrt.backends.clock import Clock, WallClock, clock_of
from matchrt.errors import BackendError, UsageError
from matchrt.runtime import Matcher
from matchrt.runtime.batches import batch_limits, batches, joined
from matchrt.runtime.prepared import Prepared
from matchrt.runtime.steps import Array, Tensors, fetch, run_chain, run_steps

Samples = dict[str, list[float]]
Pair = tuple[str, str]
Calls = Generator[Mapping[str, float], None, None]
MODES = ("engine", "host", "stages", "stream")
_AHEAD = 2
_FILL_SECONDS = 0.5
STAGES = ("read", "preprocess", "upload", "run", "download", "postprocess")


class Run(Protocol):
    """Something that can be timed. `modes` are those that it has, `clock` times its work, `tensors` are its inputs where known."""

    modes: Sequence[str]
    clock: Clock
    tensors: Tensors

    def calls(self, mode: str) -> Calls:
        """Endless: every item is one call in `mode`, finished, with seconds by part; "all" is the whole of it."""


def measure(run: Run, mode: str, runs: int | None = None, seconds: float | None = None) -> Samples:
    """Samples by part of `runs` calls, or of as many as fit into `seconds` (at least one). Raises `UsageError`."""
    if mode not in run.modes:
        raise UsageError(f"it cannot be timed in mode {mode!r}", hint=f"it has: {', '.join(run.modes)}")
    if (runs is None) == (seconds is None):
        raise UsageError("give either runs or seconds")
    samples: Samples = {}
    begin = time.perf_counter()
    calls = run.calls(mode)
    with closing(calls):
        for count, call in enumerate(calls, start=1):
            for part, value in call.items():
                samples.setdefault(part, []).append(value)
            if count == runs or (seconds is not None and time.perf_counter() - begin >= seconds):
                break
    return samples


class BundleRun:
    """A matcher on `pairs` of image files, `batch` pairs a call.

    engine  the chain of networks with its inputs on the device and its outputs left there, by the device's own events
            (a backend that takes host arrays only is timed by the wall, copies included); one part for each network, too
    host    the same from host arrays to host arrays, by the wall
    stages  from files to matches, nothing overlapped, by the wall: read, preprocess, upload, run, download, postprocess
    stream  from files to matches in `match_many` with threads (or `processes`), at its pace: one stream goes on and on, its first
            pairs are not counted, and one call is the next `stream_pairs` pairs of it
    """

    modes: Sequence[str] = MODES

    def __init__(
        self,
        matcher: Matcher,
        pairs: Sequence[Pair],
        batch: int,
        workers: int,
        lanes: int,
        stream_pairs: int,
        *,
        processes: bool = False,
    ) -> None:
        self.matcher, self.pairs, self.batch = matcher, list(pairs), batch
        self.workers, self.lanes, self.stream_pairs = workers, lanes, stream_pairs
        self.processes = processes
        self.sessions = matcher.sessions()
        self.clock = _one_clock([clock_of(s) for s in self.sessions.values()])
        self.wanted = matcher.outputs
        first = self._prepare(self.pairs[0])
        # A batch, and an engine, has one shape: pairs of others are left out.
        alike = [(p, r) for p in self.pairs if _shapes(r := self._prepare(p)) == _shapes(first)]
        self.pairs = [p for p, _ in alike]
        self.tensors = self._stack([r for _, r in islice(cycle(alike), batch)])
        self._inputs = self._upload(self.tensors)

    def calls(self, mode: str) -> Calls:
        """See the class."""
        return {"engine": self._engine, "host": self._host, "stages": self._stages, "stream": self._stream}[mode]()

    def layers(self, runs: int) -> dict[str, Mapping[str, float]]:
        """Median seconds in one call by network and layer; a network that runs twice in a call counts twice.

        The matcher must have been opened with the option `layer_times`. Raises `UsageError` for a backend that times no layers.
        """
        sessions: Mapping[str, Any] = self.sessions
        if any(not hasattr(s, "layer_times") for s in sessions.values()):
            raise UsageError(f"backend {self.matcher.backend} does not time layers")
        steps = Counter(s.network for s in self.matcher.manifest.steps)
        for _ in range(runs):
            run_chain(self.matcher.manifest, sessions, self._inputs, self.wanted)
            self.clock.synchronize()
        return {n: {k: t * steps[n] for k, t in s.layer_times().items()} for n, s in sessions.items()}

    def _engine(self) -> Calls:
        def issue(mark: Callable[[str], None]) -> None:
            run_chain(self.matcher.manifest, self.sessions, self._inputs, self.wanted, mark)

        return _pipelined(self.clock, issue)

    def _host(self) -> Calls:
        while True:
            begin = time.perf_counter()
            run_steps(self.matcher.manifest, self.sessions, self.tensors, self.wanted)
            yield {"all": time.perf_counter() - begin}

    def _stages(self) -> Calls:
        pairs = cycle(self.pairs)
        while True:
            prepared = [self._prepare(p) for p in islice(pairs, self.batch)]
            watch = _Stopwatch()
            inputs = self._upload(self._stack(prepared))
            self.clock.synchronize()
            watch.lap("upload")
            space = run_chain(self.matcher.manifest, self.sessions, inputs, self.wanted)
            self.clock.synchronize()
            watch.lap("run")
            outputs = fetch(self.matcher.manifest, space, self.wanted)
            watch.lap("download")
            self.matcher.finish(prepared, outputs)
            watch.lap("postprocess")
            for stage in ("read", "preprocess"):
                watch.laps[stage] = sum(p.seconds[stage] for p in prepared)
            parts = {s: watch.laps[s] for s in STAGES}
            yield {"all": sum(parts.values()), **parts}

    def _stream(self) -> Calls:
        matches = self.matcher.match_many(
            cycle(self.pairs),
            batch_size=self.batch,
            workers=self.workers,
            lanes=self.lanes,
            processes=self.processes,
        )
        with closing(matches):  # type: ignore[type-var]
            self._fill(matches)
            while True:
                begin = time.perf_counter()
                for _ in islice(matches, self.stream_pairs):
                    pass
                yield {"all": time.perf_counter() - begin}

    def _fill(self, matches: Iterator[object]) -> None:
        """Let a stream come to its pace: as many pairs as are on their way at a time, or those of half a second after the first, in
        whole batches."""
        begin = 0.0
        for count, _ in enumerate(matches, start=1):
            begin = begin or time.perf_counter()
            late = time.perf_counter() - begin > _FILL_SECONDS and count >= self.lanes * self.batch
            if count % self.batch == 0 and (late or count >= 2 * max(self.workers, self.lanes * self.batch)):
                break

    def _prepare(self, pair: Pair) -> Prepared:
        return self.matcher.prepare(*pair)

    def _stack(self, prepared: Sequence[Prepared]) -> Tensors:
        tensors = [p.tensors for p in prepared]
        fewest, most = batch_limits(self.matcher.manifest, self.sessions)
        groups = list(batches(tensors, most))
        if len(groups) != 1:
            raise BackendError(
                f"{self.matcher.name} cannot run {len(tensors)} of these pairs at a time",
                hint="the bundle has a fixed batch, or the images differ in size: convert for a batch, or leave out --batch",
            )
        return tensors[0] if len(tensors) == fewest == 1 else joined(tensors, fewest)

    def _upload(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """On the device, where the first step's session takes such tensors."""
        session: Any = self.sessions[self.matcher.manifest.steps[0].network]
        upload: Callable[[np.ndarray], Array] | None = getattr(session, "to_device", None)
        return {n: a if upload is None else upload(a) for n, a in tensors.items()}


class PeerRun:
    """A published implementation, as a function that runs one call on tensors which are where it wants them."""

    modes: Sequence[str] = ("engine",)

    def __init__(self, call: Callable[[], Any], clock: Clock) -> None:
        self._call, self.clock = call, clock
        self.tensors: Tensors = {}

    def calls(self, mode: str) -> Calls:
        """Only "engine"."""
        return _pipelined(self.clock, lambda mark: self._call())


def _pipelined(clock: Clock, issue: Callable[[Callable[[str], None]], object]) -> Calls:
    """Calls of `issue`, which gives work to the device and may mark parts of it by name; the caller keeps two calls ahead of the
    device, so that the device does not stand still between them unless the host cannot keep up. On the host, where a call has
    finished when it returns, no call is made that is not told."""
    flying: deque[list[tuple[str, Any]]] = deque()
    ahead = 0 if isinstance(clock, WallClock) else _AHEAD
    try:
        while True:
            marks = [("", clock.mark())]
            issue(lambda name, marks=marks: marks.append((name, clock.mark())))  # type: ignore[misc]
            marks.append(("all", clock.mark()))
            flying.append(marks)
            if len(flying) > ahead:
                yield _landed(clock, flying.popleft())
    finally:
        clock.synchronize()
        for marks in flying:
            clock.forget(*(m for _, m in marks))


def _landed(clock: Clock, marks: list[tuple[str, Any]]) -> Mapping[str, float]:
    clock.wait(marks[-1][1])
    parts = {"all": clock.seconds(marks[0][1], marks[-1][1])}
    for (_, begin), (name, end) in pairwise(marks[:-1]):
        parts[name] = parts.get(name, 0.0) + clock.seconds(begin, end)
    clock.forget(*(m for _, m in marks))
    return parts


def _shapes(prepared: Prepared) -> dict[str, tuple[int, ...]]:
    return {n: a.shape for n, a in prepared.tensors.items()}


class _Stopwatch:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def _one_clock(clocks: Sequence[Clock]) -> Clock:
    """The device's clock if all networks run on it; else the wall's, around work that each call finishes."""
    return clocks[0] if len({(type(c), c.kind) for c in clocks}) == 1 else WallClock()


def default_workers(processes: bool = False) -> int:
    """Threads for reading and preprocessing: one a core, 4 at most. More wait for Python's lock, and for memory, longer than they help:
    on 16 cores beside an H200, 4 prepared most pairs and 16 nearly a third fewer (`docs/benchmarks/gpu.md`). Of processes, 8 at most.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8 if processes else 4, cores))
