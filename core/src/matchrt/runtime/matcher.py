"""`Matcher`: a loaded bundle that is called with two images."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from types import TracebackType
from typing import Any

from matchrt.backends import BackendSpec, Engine, Session
from matchrt.bundle import Bundle
from matchrt.errors import BackendError, UsageError
from matchrt.images.image import Image
from matchrt.images.read import read_image
from matchrt.matches import Matches
from matchrt.model import Settings
from matchrt.plugins.dispatch import MatcherHooks
from matchrt.progress import Progress
from matchrt.runtime.batches import batch_limits, batches, joined
from matchrt.runtime.engines import open_engines
from matchrt.runtime.steps import Tensors, run_steps, split_batch
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
        self._settings = _resolve(hooks, bundle, dict(settings or {}))
        self._engines: dict[str, Engine] = open_engines(
            bundle, hooks, backend, precision, dict(options or {}), progress
        )
        self._local = threading.local()
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
        self, pairs: Iterable[tuple[Any, Any]], batch_size: int = 1, **settings: object
    ) -> Iterator[Matches]:
        """Matches of each pair, in order. Neighbours whose tensors have equal shapes run `batch_size` at a time, or as many as
        the bundle's axis and its engines take if that is less.

        A pair that fails raises when its turn comes.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}")
        iterator = iter(pairs)
        while chunk := list(islice(iterator, batch_size)):
            yield from self._match(chunk, settings)

    def close(self) -> None:
        """Free the engines. Later calls raise `BackendError`."""
        self._closed = True
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

    def _match(self, pairs: Sequence[tuple[Any, Any]], overrides: Mapping[str, object]) -> list[Matches]:
        settings = _resolve(self._hooks, self.bundle, overrides, self._settings) if overrides else self._settings
        clock = [time.perf_counter()]
        images = [(read_image(a), read_image(b)) for a, b in pairs]
        clock.append(time.perf_counter())
        prepared = [self.preprocess(a, b, settings) for a, b in images]
        clock.append(time.perf_counter())
        tensors = self._run([t for t, _ in prepared])
        clock.append(time.perf_counter())
        results = [
            self._hooks.postprocess(t, geometry, settings) for t, (_, geometry) in zip(tensors, prepared, strict=True)
        ]
        clock.append(time.perf_counter())
        spans = [(b - a) / len(pairs) for a, b in pairwise(clock)]
        seconds = dict(zip(("read", "preprocess", "run", "postprocess"), spans, strict=True))
        return [self._finish(r, pair, seconds) for r, pair in zip(results, images, strict=True)]

    def _finish(self, matches: Matches, images: tuple[Image, Image], seconds: Mapping[str, float]) -> Matches:
        return replace(
            matches,
            matcher=self.name,
            backend=self.backend,
            precision=self.precision,
            random_weights=self.manifest.random_weights,
            seconds=seconds,
            images=images,
        )

    def _run(self, pairs: list[Tensors]) -> list[Tensors]:
        """Run the steps for every pair: neighbours of equal shapes together, as many at once as bundle and engines take."""
        sessions, wanted = self.sessions(), self._hooks.matcher.outputs
        fewest, most = batch_limits(self.manifest, sessions)
        results: list[Tensors] = []
        for batch in batches(pairs, most):
            if len(batch) == fewest == 1:
                results.append(run_steps(self.manifest, sessions, batch[0], wanted))
            else:
                tensors = run_steps(self.manifest, sessions, joined(batch, fewest), wanted)
                results += split_batch(tensors, len(batch))
        return results


def _resolve(
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
