"""`Matcher`: a loaded bundle that is called with two images."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any

from matchrt.backends import BackendSpec, Engine, Session
from matchrt.bundle import Bundle
from matchrt.errors import BackendError, UsageError
from matchrt.images.image import Image
from matchrt.matches import Matches
from matchrt.model import Settings
from matchrt.plugins.dispatch import MatcherHooks
from matchrt.progress import Progress
from matchrt.runtime.batches import batch_limits, batches, joined
from matchrt.runtime.engines import open_engines
from matchrt.runtime.prepared import Prepared, prepare_pair
from matchrt.runtime.readers import ReaderPool
from matchrt.runtime.steps import Tensors, run_steps, split_batch
from matchrt.runtime.stream import Jobs, stream
from matchrt.settings import resolve


class Matcher:
    """Matches image pairs with the networks of one bundle on one backend.

    Engines are shared and each thread gets sessions of its own, so a matcher may be called from several threads.
    """

    def __init__(
        self,
        bundle: Bundle,
        hooks: MatcherHooks,
        backend: BackendSpec,
        precision: str = "fp32",
        options: Mapping[str, Any] | None = None,
        settings: Mapping[str, object] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.backend = backend.name
        self.precision = precision
        self._hooks = hooks
        self._settings = settings_of(hooks, bundle, dict(settings or {}))
        self._engines: dict[str, Engine] = open_engines(
            bundle, hooks, backend, precision, dict(options or {}), progress
        )
        self._local = threading.local()
        self._lanes: dict[int, ThreadPoolExecutor] = {}
        self._readers: ReaderPool | None = None
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        identity = self.manifest.matcher
        return f"Matcher({identity.id}:{identity.variant}, backend={self.backend!r}, precision={self.precision!r})"

    @property
    def name(self) -> str:
        """ "matcher:variant"."""
        return f"{self.manifest.matcher.id}:{self.manifest.matcher.variant}"

    @property
    def settings(self) -> Settings:
        """The settings in force, with their origins."""
        return self._settings

    def __call__(self, image0: Any, image1: Any, **settings: object) -> Matches:
        """Match two images: paths, uint8 arrays (H, W) or (H, W, 3) RGB, or PIL images.

        Keywords override match settings for this call. Raises `ImageError`, `UsageError`, `BackendError`.
        """
        return self._match([(image0, image1)], settings)[0]

    def match_many(
        self,
        pairs: Iterable[tuple[Any, Any]],
        batch_size: int = 1,
        *,
        workers: int = 0,
        prefetch: int | None = None,
        lanes: int = 1,
        processes: bool = False,
        **settings: object,
    ) -> Iterator[Matches]:
        """Matches of each pair, in order. Neighbours whose tensors have equal shapes run `batch_size` at a time, or as many as
        the bundle's axis and its engines take if that is less.

        With `workers` threads, later pairs are read and preprocessed while earlier ones run, at most `prefetch` pairs ahead of the one
        that is handed out (None: enough to keep all busy); results are made ready in the same threads. `lanes` batches run at a time,
        each with sessions and memory of its own: with two, one copies while the other computes.
        With `processes`, each worker has a process that reads and preprocesses for it, for engines so fast that threads, which share
        Python's lock, cannot keep up. They start in about a second, at the first pairs, and stay until `close`.
        A pair that fails raises when its turn comes, after the matches of those before it. Raises `UsageError` for counts out of range.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}")
        if workers < 0 or lanes < 1 or (prefetch is not None and prefetch < batch_size):
            raise UsageError(
                f"workers must not be negative, lanes at least 1 and prefetch at least batch_size ({batch_size}); "
                f"got {workers}, {lanes} and {prefetch}"
            )
        if processes and not workers:
            raise UsageError("processes read for workers, and there are none", hint="say workers=4, for example")
        chosen = self._chosen(settings)
        if workers == 0:
            return self._one_by_one(pairs, batch_size, chosen)
        ahead = prefetch or 2 * max(workers, lanes * batch_size) + batch_size
        prepare = self._reader_pool().prepare if processes else self._prepare
        jobs = Jobs(
            prepare=lambda pair: prepare(pair, chosen),
            run=self._run_prepared,
            finish=lambda ready: self._finish(ready, chosen),
        )
        return stream(pairs, jobs, self._lane_pool(lanes), batch_size=batch_size, workers=workers, ahead=ahead)

    def close(self) -> None:
        """Free the engines. Later calls raise `BackendError`."""
        self._closed = True
        with self._lock:
            lanes, self._lanes = self._lanes, {}
            readers, self._readers = self._readers, None
        if readers is not None:
            readers.close()
        for pool in lanes.values():
            pool.shutdown(cancel_futures=True)
        for engine in self._engines.values():
            engine.close()

    def __enter__(self) -> Matcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def sessions(self) -> dict[str, Session]:
        """The calling thread's session of each network."""
        if self._closed:
            raise BackendError(f"{self!r} is closed")
        if not hasattr(self._local, "sessions"):
            self._local.sessions = {name: engine.session() for name, engine in self._engines.items()}
        sessions: dict[str, Session] = self._local.sessions
        return sessions

    def preprocess(self, image0: Image, image1: Image, settings: Settings) -> tuple[Tensors, Any]:
        """Tensors and geometry of one pair, checked against the bundle's contract."""
        tensors, geometry = self._hooks.preprocess((image0, image1), settings)
        return dict(tensors), geometry

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that `postprocess` reads; empty if it does not say."""
        return tuple(self._hooks.matcher.outputs)

    def prepare(self, image0: Any, image1: Any) -> Prepared:
        """Read and preprocess one pair: the first part of a call, for those who run the rest themselves."""
        return self._prepare((image0, image1), self._settings)

    def finish(self, prepared: Sequence[Prepared], outputs: Tensors) -> list[Matches]:
        """Matches of a batch, from the tensors that its steps made: the last part of a call."""
        rows = [outputs] if len(prepared) == 1 else split_batch(outputs, len(prepared))
        return [self._finish(replace(p, tensors=t), self._settings) for p, t in zip(prepared, rows, strict=True)]

    def _match(self, pairs: Sequence[tuple[Any, Any]], overrides: Mapping[str, object]) -> list[Matches]:
        settings = self._chosen(overrides)
        return [self._finish(r, settings) for r in self._run_prepared([self._prepare(p, settings) for p in pairs])]

    def _one_by_one(self, pairs: Iterable[tuple[Any, Any]], batch_size: int, settings: Settings) -> Iterator[Matches]:
        failed: Exception | None = None
        iterator = iter(pairs)
        while failed is None:
            prepared: list[Prepared] = []
            while len(prepared) < batch_size and failed is None:
                try:
                    pair = next(iterator, None)
                    if pair is None:
                        break
                    prepared.append(self._prepare(pair, settings))
                except Exception as error:
                    failed = error
            if not prepared:
                break
            for ready in self._run_prepared(prepared):
                yield self._finish(ready, settings)
        if failed is not None:
            raise failed

    def _chosen(self, overrides: Mapping[str, object]) -> Settings:
        return settings_of(self._hooks, self.bundle, overrides, self._settings) if overrides else self._settings

    def _prepare(self, pair: tuple[Any, Any], settings: Settings) -> Prepared:
        """Read and preprocess one pair."""
        return prepare_pair(self._hooks, pair, settings)

    def _run_prepared(self, prepared: list[Prepared]) -> list[Prepared]:
        """The same pairs with the tensors that `postprocess` reads."""
        begin = time.perf_counter()
        tensors = self._run([p.tensors for p in prepared])
        seconds = (time.perf_counter() - begin) / len(prepared)
        return [
            replace(p, tensors=t, seconds={**p.seconds, "run": seconds}) for p, t in zip(prepared, tensors, strict=True)
        ]

    def _finish(self, ready: Prepared, settings: Settings) -> Matches:
        begin = time.perf_counter()
        matches = self._hooks.postprocess(ready.tensors, ready.geometry, settings)
        return replace(
            matches,
            matcher=self.name,
            backend=self.backend,
            precision=self.precision,
            random_weights=self.manifest.random_weights,
            seconds={**ready.seconds, "postprocess": time.perf_counter() - begin},
            images=ready.images,
        )

    def _lane_pool(self, lanes: int) -> ThreadPoolExecutor:
        """Threads that live as long as this matcher, because their sessions do."""
        with self._lock:
            if lanes not in self._lanes:
                self._lanes[lanes] = ThreadPoolExecutor(lanes, thread_name_prefix="matchrt-lane")
            return self._lanes[lanes]

    def _reader_pool(self) -> ReaderPool:
        """Processes that live as long as this matcher."""
        if self._closed:
            raise BackendError(f"{self!r} is closed")
        with self._lock:
            if self._readers is None:
                self._readers = ReaderPool(self._hooks)
            return self._readers

    def _run(self, pairs: list[Tensors]) -> list[Tensors]:
        """Run the steps for every pair: neighbours of equal shapes together, as many at once as bundle and engines take."""
        sessions, wanted = self.sessions(), self.outputs
        fewest, most = batch_limits(self.manifest, sessions)
        results: list[Tensors] = []
        for batch in batches(pairs, most):
            if len(batch) == fewest == 1:
                results.append(run_steps(self.manifest, sessions, batch[0], wanted))
            else:
                tensors = run_steps(self.manifest, sessions, joined(batch, fewest), wanted)
                results += split_batch(tensors, len(batch))
        return results


def settings_of(
    hooks: MatcherHooks, bundle: Bundle, overrides: Mapping[str, object], base: Settings | None = None
) -> Settings:
    """The bundle's settings with `overrides` of match settings. Raises `UsageError` for a setting that is baked in."""
    manifest = bundle.manifest
    for name in overrides:
        if name in manifest.settings:
            raise UsageError(
                f"setting {name!r} is baked into this bundle as {manifest.settings[name]}",
                hint=f"convert again with --set {name}=…",
            )
    known = [s for s in hooks.matcher.settings if s.name in {**manifest.settings, **manifest.match_settings}]
    layers: list[tuple[str, Mapping[str, object]]] = [
        ("bundle", {n: v for n, v in manifest.settings.items() if any(s.name == n for s in known)}),
    ]
    match_known = [s for s in known if s.name in manifest.match_settings]
    chosen = resolve(match_known, ("bundle", manifest.match_settings), ("flag", dict(overrides)))
    if base is not None:
        chosen = base.replace("flag", **{n: chosen[n] for n in overrides})
        return chosen
    baked = resolve([s for s in known if s.name in manifest.settings], *layers, environment={})
    return Settings(
        {**baked, **chosen}, {**{n: baked.origin(n) for n in baked}, **{n: chosen.origin(n) for n in chosen}}
    )
