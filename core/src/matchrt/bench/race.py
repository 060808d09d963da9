"""Run contenders, each in a process of its own: opened one after another, then timed in turns, round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matchrt.bench.contenders import Contender
from matchrt.bench.inputs import Pair, peer_tensors
from matchrt.bench.stats import summary
from matchrt.errors import MatchrtError
from matchrt.progress import Progress, Silent, stage
from matchrt.workers import Interpreters, Worker
from matchrt.workers.client import Opened

SHARES: Mapping[str, float] = {"engine": 0.4, "host": 0.2, "stages": 0.2, "stream": 0.2}
"""How a contender's seconds are spent."""
_LEAST_ROUNDS, _MOST_RUNS, _LAYER_RUNS = 3, 500, 5


@dataclass(frozen=True, kw_only=True)
class Course:
    """How everybody is timed. `seconds` and `warm_up` are for each contender, `rounds` at most; `stream_pairs` a call of mode stream."""

    pairs: Sequence[Pair]
    rounds: int = 7
    seconds: float = 20.0
    warm_up: float = 1.0
    modes: Sequence[str] = tuple(SHARES)
    stream_pairs: int = 0
    stream_workers: int = 0
    stream_processes: bool = False
    lanes: int = 0
    threads: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)
    trust: Sequence[str] = ()
    checkpoints: Sequence[str] = ()
    sequential: bool = False
    layers: int = 0
    """How many of the slowest layers of each of our networks to tell; timed apart, after the rounds."""
    interpreters: Interpreters = field(default_factory=Interpreters)


@dataclass
class Entry:
    """A contender on its way, and what came of it. `error` says why it dropped out."""

    contender: Contender
    worker: Worker | None = None
    opened: Opened | None = None
    first_call: float = 0.0
    clock: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)
    plan: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(rounds, runs a round) by mode."""
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    stream_pairs: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    """Modes that it was not timed in, and why."""
    layers: dict[str, Any] = field(default_factory=dict)
    """By network: "count" of its layers, "seconds" of all, and the "slowest" with theirs."""
    error: dict[str, str | None] | None = None

    def record(self) -> dict[str, Any]:
        """JSON-able values. Times are seconds for one pair, memory is in bytes."""
        c = self.contender
        known: dict[str, Any] = {
            "label": c.label,
            "bundle": c.bundle_name,
            "bundle_sha256": c.bundle.sha256,
            "matcher": f"{c.bundle.manifest.matcher.id}:{c.bundle.manifest.matcher.variant}",
            "random_weights": c.bundle.manifest.random_weights,
            "baked": dict(c.bundle.manifest.settings),
            "backend": c.backend,
            "precision": c.precision,
            "batch": c.batch,
            "peer": c.peer,
            "options": {n: v for n, v in c.options.items() if n != "checkpoint"},
        }
        if self.error is not None or self.opened is None:
            return {**known, "error": self.error}
        return {
            **known,
            "device": dict(self.opened.device),
            "versions": dict(self.opened.versions),
            "clock": self.clock,
            "inputs": dict(self.inputs),
            "seconds": {**{n: round(s, 4) for n, s in self.opened.seconds.items()}, "first_call": self.first_call},
            "times": {mode: self._summary(mode, parts) for mode, parts in self.samples.items()},
            "memory": self.memory,
            "left_out": dict(self.left_out),
            **({"layers": self.layers} if self.layers else {}),
        }

    def _summary(self, mode: str, parts: Mapping[str, list[float]]) -> dict[str, Any]:
        pairs = self.stream_pairs if mode == "stream" else self.contender.batch
        rounds, runs = self.plan[mode]
        return {"rounds": rounds, "runs": runs, **{part: summary(values, pairs) for part, values in parts.items()}}


def race(contenders: Sequence[Contender], course: Course, progress: Progress | None = None) -> list[Entry]:
    """Time every contender. One that fails says so in its entry and the others go on.

    Raises `EnvironmentLackError` for an interpreter without matchrt.
    """
    progress = progress or Silent()
    entries = [Entry(c) for c in contenders]
    groups = [[e] for e in entries] if course.sequential else [entries]
    with stage(progress, "contenders", len(entries)):
        for group in groups:
            with ExitStack() as stack:
                for entry in group:
                    _attempt(entry, lambda e=entry: _open(e, course, stack, progress))  # type: ignore[misc]
                    progress.advance(1, entry.contender.label)
                _rounds([e for e in group if e.error is None], progress)
                for entry in group:
                    if entry.error is None:
                        _attempt(entry, lambda e=entry: _read_memory(e))  # type: ignore[misc]
    if course.layers:
        for entry in entries:
            if entry.error is None and not entry.contender.is_peer:
                _time_layers(entry, course, progress)
    return entries


def _attempt(entry: Entry, work: Callable[[], None]) -> None:
    try:
        work()
    except MatchrtError as error:
        entry.error = {"message": error.message, "hint": error.hint}
        if entry.worker is not None:
            entry.worker.end()  # its memory must not weigh on the others


def _worker(entry: Entry) -> Worker:
    assert entry.worker is not None
    return entry.worker


def _open(entry: Entry, course: Course, stack: ExitStack, progress: Progress) -> None:
    c = entry.contender
    interpreter = course.interpreters.of("torch" if c.is_peer else c.backend)
    entry.worker = stack.enter_context(Worker(interpreter, name=c.label))
    if c.function is not None:
        tensors = peer_tensors(c.bundle, course.pairs, c.batch, course.settings)
        entry.opened = entry.worker.open_peer(
            f"{c.function.path}:{c.function.function}",
            c.function.options,
            c.bundle.manifest.model_dump(mode="json"),
            tensors,
            device=str(c.options["device"]),
            threads=course.threads,
        )
    else:
        extra = {"checkpoint": list(course.checkpoints)} if c.backend == "torch" and course.checkpoints else {}
        entry.opened = entry.worker.open(
            c.bundle.path,
            backend=c.backend,
            precision=c.precision,
            provider=c.provider,
            threads=course.threads,
            trust=course.trust,
            options={**c.options, **extra},
            settings=course.settings,
            context=c.on_gpu,
            progress=progress,
        )
    _prepare(entry, course)


def _prepare(entry: Entry, course: Course) -> None:
    """First call, warm-up, and how many rounds and runs the seconds allow."""
    batch, worker = entry.contender.batch, _worker(entry)
    on_gpu = entry.opened is not None and entry.opened.device.get("kind") == "cuda"
    entry.stream_pairs = course.stream_pairs or (32 if on_gpu else 4) * batch
    answer = worker.ask(
        "prepare",
        pairs=[[str(a), str(b)] for a, b in course.pairs],
        batch=batch,
        workers=course.stream_workers,
        processes=course.stream_processes,
        lanes=course.lanes or (2 if on_gpu else 1),
        stream_pairs=entry.stream_pairs,
    )
    entry.first_call, entry.clock, entry.inputs = round(answer["first_call"], 4), answer["clock"], answer["inputs"]
    modes = [m for m in answer["modes"] if m in course.modes]
    total = sum(SHARES[m] for m in modes)
    if course.warm_up > 0:
        _time(worker, "engine", seconds=course.warm_up)
    for mode in modes:
        if mode == "stream":
            entry.memory = worker.memory()  # streaming may hold several sessions
            if "compile" in entry.contender.options:
                entry.left_out[mode] = "compiled PyTorch holds its CUDA graphs in one thread"
                continue
        try:
            entry.plan[mode] = _plan(worker, mode, course.seconds * SHARES[mode] / total, course.rounds)
        except MatchrtError as error:
            if mode == "engine" or worker.pid is None:
                raise
            entry.left_out[mode] = error.message


def _time_layers(entry: Entry, course: Course, progress: Progress) -> None:
    """Open it once more, in a process of its own, so that timing layers slows nothing that was timed before."""
    apart = Entry(replace(entry.contender, options={**entry.contender.options, "layer_times": True}))
    with ExitStack() as stack:
        try:
            _open(apart, replace(course, warm_up=0.0, modes=()), stack, progress)
            found = _worker(apart).ask("layers", runs=_LAYER_RUNS)["layers"]
        except MatchrtError as error:
            entry.left_out["layers"] = error.message
            return
    for network, times in found.items():
        slowest = sorted(times, key=lambda layer: -layer[1])[: course.layers]
        entry.layers[network] = {"count": len(times), "seconds": sum(t for _, t in times), "slowest": slowest}


def _plan(worker: Worker, mode: str, budget: float, rounds: int) -> tuple[int, int]:
    span = min(0.2, budget / 10)
    # Streaming may hold memory of several sessions, whose peak is followed now and not while it is timed.
    first = worker.ask("time", mode=mode, runs=1, trial=mode == "stream")["samples"]["all"][0]
    # A call that is longer than the trial needs no trial: another one would cost as much again.
    return rounds_and_runs(first if first > span else _time(worker, mode, seconds=span), budget, rounds)


def rounds_and_runs(once: float, budget: float, rounds: int) -> tuple[int, int]:
    """How many rounds, and runs in each, fit into `budget` seconds if a run takes `once`: all rounds if they do, at least three."""
    fitting = max(min(_LEAST_ROUNDS, rounds), min(rounds, int(budget / once)))
    return fitting, max(1, min(_MOST_RUNS, int(budget / (fitting * once))))


def _time(worker: Worker, mode: str, seconds: float) -> float:
    """Median seconds of a call, wall of the loop included where the device is faster than its caller."""
    samples: list[float] = worker.ask("time", mode=mode, seconds=seconds)["samples"]["all"]
    return max(sorted(samples)[len(samples) // 2], seconds / len(samples) if len(samples) > 1 else 0.0, 1e-6)


def _rounds(entries: Sequence[Entry], progress: Progress) -> None:
    """A B C A B C …: every mode in turn, every contender once a round."""
    steps = list(_turns(entries))
    with stage(progress, "rounds", len(steps)):
        for entry, mode, runs in steps:
            if entry.error is None:
                _attempt(entry, lambda e=entry, m=mode, r=runs: _one_round(e, m, r))  # type: ignore[misc]
            progress.advance(1, f"{entry.contender.label} {mode}")


def _turns(entries: Sequence[Entry]) -> Iterator[tuple[Entry, str, int]]:
    most = max((rounds for e in entries for rounds, _ in e.plan.values()), default=0)
    for number in range(most):
        for mode in SHARES:
            for entry in entries:
                rounds, runs = entry.plan.get(mode, (0, 0))
                if number < rounds:
                    yield entry, mode, runs


def _one_round(entry: Entry, mode: str, runs: int) -> None:
    found: dict[str, list[float]] = _worker(entry).ask("time", mode=mode, runs=runs)["samples"]
    kept = entry.samples.setdefault(mode, {})
    for part, values in found.items():
        kept.setdefault(part, []).extend(values)


def _read_memory(entry: Entry) -> None:
    """Peaks without streaming, and with it."""
    every = _worker(entry).memory()
    entry.memory = {**(entry.memory or every), "device_peak_streaming": every["device_peak"]}


def failed(entries: Iterable[Entry]) -> list[Entry]:
    """Those that dropped out."""
    return [e for e in entries if e.error is not None]


def bundle_paths(contenders: Iterable[Contender]) -> list[Path]:
    """Folders of the bundles, each once."""
    return list(dict.fromkeys(c.bundle.path for c in contenders))
