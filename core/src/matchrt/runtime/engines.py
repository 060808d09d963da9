"""Open the engines of a bundle: as the backend opens bundles, its own graphs where the backend runs them, else engines from the cache,
built if need be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matchrt.backends import Backend, BackendSpec, Engine
from matchrt.bundle import Bundle
from matchrt.errors import EnvironmentLackError, UsageError
from matchrt.plugins import MatcherHooks
from matchrt.progress import Progress, Silent, stage

if TYPE_CHECKING:
    from matchrt.engines.cache import Entry


def open_engines(
    bundle: Bundle,
    hooks: MatcherHooks,
    spec: BackendSpec,
    precision: str,
    options: Mapping[str, Any],
    progress: Progress | None = None,
) -> dict[str, Engine]:
    """An engine for every network of `bundle`. `options` may hold `trust` (sha256s) besides what the backend takes.

    The engines of the last `matchrt build` of this bundle are used if they are for this backend, device and precision; if there are
    none they are built with default shapes. Raises `UsageError` for a precision that the backend has no way to give, and as
    `build_engines` and the backend do.
    """
    backend: Any = spec.create()
    options = dict(options)
    trust = tuple(options.pop("trust", ()))
    if hasattr(backend, "open_bundle"):
        engines: dict[str, Engine] = backend.open_bundle(bundle, hooks, precision, options)
        return engines
    if precision in getattr(backend, "runs_as_is", frozenset({"fp32"})):
        return _open_graphs(bundle, backend, options)
    if not hasattr(backend, "build"):
        raise UsageError(f"backend {spec.name!r} runs bundles in fp32 only, not in {precision}")
    return _open_built(bundle, hooks, backend, precision, options, trust, progress)


def _open_graphs(bundle: Bundle, backend: Backend, options: Mapping[str, Any]) -> dict[str, Engine]:
    return {n.name: backend.open(n.name, bundle.graph(n.name), options) for n in bundle.manifest.networks}


def _open_built(
    bundle: Bundle,
    hooks: MatcherHooks,
    backend: Any,
    precision: str,
    options: Mapping[str, Any],
    trust: tuple[str, ...],
    progress: Progress | None,
) -> dict[str, Engine]:
    info = backend.info()
    if not info.can_run:
        raise EnvironmentLackError(
            f"backend {backend.name!r} cannot run here: {info.reason}",
            hint="run it on a machine with a GPU, or choose --backend onnxruntime",
        )
    from matchrt.engines import CorruptEngineError, EngineCache, UntrustedEngineError
    from matchrt.engines.build import BuildRequest, build_engines, find_built, request_digest
    from matchrt.engines.trust import parse_digests

    cache, digests = EngineCache(), parse_digests(trust)
    request = BuildRequest(precision=precision)

    def load(entries: Mapping[str, Entry]) -> dict[str, Engine]:
        engines: dict[str, Engine] = {}
        for network in bundle.manifest.networks:
            entry, payload = cache.read(entries[network.name].key, digests)
            engines[network.name] = backend.load(network.name, payload, entry.io, options)
        return engines

    found = find_built(bundle, hooks, backend, precision, cache, digests)
    if found is not None:
        try:
            return load(found)
        except (CorruptEngineError, UntrustedEngineError) as error:
            plain = request_digest(request)
            if any(all(o["request"] != plain for o in e.record["origins"]) for e in found.values()):
                again = (
                    "run `matchrt build` again with the same options: it puts this engine aside and builds a new one"
                )
                raise type(error)(error.message, hint=f"{again}; {error.hint}" if error.hint else again) from None
    with stage(progress or Silent(), f"build engines for {backend.name} {precision}"):
        made = build_engines(bundle, hooks, backend, request, cache, progress)
    return load({b.plan.network: b.entry for b in made})
