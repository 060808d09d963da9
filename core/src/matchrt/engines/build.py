"""Build the engines of a bundle: prepare, lint, look into the cache, build what is not there."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matchrt.backends.building import BuildingBackend, BuildJob, BuildOutput, Identity
from matchrt.backends.cuda_probe import probe
from matchrt.bundle import Bundle
from matchrt.engines.cache import EngineCache, Entry, Fresh
from matchrt.engines.isolated import Quiet, build_isolated
from matchrt.engines.prepared import Prepared, code_fingerprint, prepare_network
from matchrt.engines.profiles import Range, axis_ranges, frozen_axes, profiles_of
from matchrt.engines.spec import EngineSpec
from matchrt.errors import BackendError, UsageError
from matchrt.model import PrecisionRule, Target
from matchrt.plugins import MatcherHooks
from matchrt.progress import Progress, Silent, stage

PRECISIONS = ("fp32", "fp16", "mixed")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a search for mixed precision chose for one network: rules besides the matcher's own, and how they were found."""

    rules: tuple[PrecisionRule, ...] = ()
    record: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build. `shapes` and `batch` narrow the bundle's dynamic axes, `options` are the backend's by name.

    `kept` is what stays in float32 in each network under precision `mixed` (see `matchrt.verify.mixed`).
    """

    precision: str = "fp32"
    shapes: Mapping[str, Range] = field(default_factory=lambda: MappingProxyType({}))
    batch: Range | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    targets: tuple[str, ...] = ()
    isolate: bool | None = None
    """Build in a process of its own; None lets the backend decide."""
    kept: Mapping[str, Kept] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One network, ready to build."""

    network: str
    spec: EngineSpec
    prepared: Prepared
    identity: Identity
    cached: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            "network": self.network,
            "key": self.spec.key(),
            "cached": self.cached,
            "spec": self.spec.to_dict(),
            "passes": list(self.prepared.applied),
            "notes": list(self.prepared.notes),
            "findings": [asdict(f) for f in self.prepared.findings],
        }


@dataclass(frozen=True, kw_only=True)
class Built:
    """One network's engine, and whether it was there already."""

    plan: Plan
    entry: Entry
    hit: bool
    seconds: float


def build_engines(
    bundle: Bundle,
    hooks: MatcherHooks,
    backend: BuildingBackend,
    request: BuildRequest,
    cache: EngineCache | None = None,
    progress: Progress | None = None,
    only: Collection[str] | None = None,
    jobs: int = 1,
) -> list[Built]:
    """An engine for every network of `bundle` (or those in `only`), from the cache or built now, in the order of the networks.

    `jobs` builds run at a time, each in a process of its own; they share the GPU, so kernels are timed beside other work then.
    Raises `UsageError`, `EnvironmentLackError`, and `BackendError` with the linter's, the parser's or the builder's reasons.
    """
    if jobs < 1:
        raise UsageError(f"jobs must be at least 1, got {jobs}")
    cache, progress = cache or EngineCache(), progress or Silent()
    origin = {**_origin(bundle, hooks, request), "request": request_digest(request)}
    with planned(bundle, hooks, backend, request, cache, progress, only) as plans:
        chosen = request if jobs == 1 else replace(request, isolate=True)

        def make(plan: Plan, progress: Progress) -> Built:
            return _built(plan, backend, chosen, cache, {**origin, "network": plan.network}, progress)

        if jobs == 1 or len(plans) < 2:
            return [make(plan, progress) for plan in plans]
        for plan in plans:
            require_buildable(plan)
        with stage(progress, f"build, {jobs} at a time", len(plans)):
            return _side_by_side(plans, make, jobs, progress)


def _side_by_side(
    plans: Sequence[Plan], make: Callable[[Plan, Progress], Built], jobs: int, progress: Progress
) -> list[Built]:
    """What `make` gives for each plan, `jobs` at a time. The first failure, or Ctrl-C, ends those that are under way."""
    stop = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(make, plan, Quiet(stop)) for plan in plans]
        try:
            for done in as_completed(futures):
                progress.advance(1, done.result().plan.network)
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
    return [future.result() for future in futures]


def _built(
    plan: Plan,
    backend: BuildingBackend,
    request: BuildRequest,
    cache: EngineCache,
    origin: Mapping[str, Any],
    progress: Progress,
) -> Built:
    begin = time.perf_counter()
    require_buildable(plan)
    waited: list[str] = []

    def wait() -> None:
        waited.append(plan.network)
        progress.start(f"wait for another build of {plan.network}", None)

    try:
        entry, hit = cache.get_or_build(
            plan.spec, origin, lambda: _build(plan, backend, request, cache, progress), wait
        )
    finally:
        if waited:
            progress.finish()
    return Built(plan=plan, entry=entry, hit=hit, seconds=time.perf_counter() - begin)


@contextmanager
def planned(
    bundle: Bundle,
    hooks: MatcherHooks,
    backend: BuildingBackend,
    request: BuildRequest,
    cache: EngineCache,
    progress: Progress,
    only: Collection[str] | None = None,
) -> Iterator[list[Plan]]:
    """Plans for all networks, or those in `only`; their graph files exist while the block runs. Builds nothing."""
    if request.precision not in PRECISIONS:
        raise UsageError(f"precision {request.precision!r} is not one of {', '.join(PRECISIONS)}")
    lacking = {n.name for n in bundle.manifest.networks} - set(request.kept)
    if request.precision == "mixed" and lacking:
        raise UsageError(
            "precision mixed needs a search for what stays in float32",
            hint=f"`matchrt build {bundle.path} --backend {backend.name} --precision mixed` runs it",
        )
    target = backend.target("fp16" if request.precision == "mixed" else request.precision)
    options = resolve_options(hooks, backend, target, request)
    identity = backend.identity(request.targets)
    ranges = axis_ranges(bundle.manifest, request.shapes, request.batch)
    contracts = [n for n in bundle.manifest.networks if only is None or n.name in only]
    with tempfile.TemporaryDirectory(prefix=".work-", dir=cache.root) as folder:
        plans = []
        with stage(progress, "prepare", len(contracts)):
            for contract in contracts:
                freeze = frozen_axes(contract, ranges)
                rules = request.kept[contract.name].rules if contract.name in request.kept else ()
                prepared = prepare_network(bundle, hooks, contract.name, target, freeze, Path(folder), rules)
                spec = EngineSpec(
                    graph_sha256=prepared.sha256,
                    backend=backend.name,
                    backend_version=identity.version,
                    precision=request.precision,
                    profiles=profiles_of(contract, ranges),
                    options=tuple(sorted(options.items())),
                    kept_sha256=_digest(prepared.kept) if prepared.kept else "",
                    compute_capability=identity.compute_capability,
                    gpu=identity.gpu,
                    targets=tuple(request.targets),
                    platform=identity.platform,
                )
                cached = cache.sidecar_path(spec.key()).is_file()
                plans.append(
                    Plan(network=contract.name, spec=spec, prepared=prepared, identity=identity, cached=cached)
                )
                progress.advance(1, contract.name)
        yield plans


def resolve_options(
    hooks: MatcherHooks, backend: BuildingBackend, target: Target, request: BuildRequest
) -> Mapping[str, Any]:
    """Options of the plugins, overridden by the request's, checked and completed by the backend."""
    return backend.options({**hooks.engine_options(target), **request.options})


def request_digest(request: BuildRequest) -> str:
    """What a request asked for, apart from backend and device: engines of one digest belong together."""
    data = {
        "precision": request.precision,
        "shapes": {n: asdict(r) for n, r in request.shapes.items()},
        "batch": asdict(request.batch) if request.batch else None,
        "options": dict(request.options),
        "targets": list(request.targets),
    }
    if request.kept:
        data["kept"] = {n: [r.pattern for r in k.rules] for n, k in request.kept.items()}
    return _digest(data)


def require_buildable(plan: Plan) -> None:
    """Raise `BackendError` with every node that the backend is known to refuse, its limit and its remedy."""
    errors = [f for f in plan.prepared.findings if f.severity == "error"]
    if errors:
        lines = [f"node {f.node!r} ({f.operator}): {f.limit}; {f.remedy}" for f in errors]
        raise BackendError(
            f"{plan.spec.backend} {plan.spec.backend_version} would refuse network {plan.network!r}:\n  "
            + "\n  ".join(lines)
        )


def _build(
    plan: Plan, backend: BuildingBackend, request: BuildRequest, cache: EngineCache, progress: Progress
) -> Fresh:
    name = f"{backend.name}-{plan.spec.backend_version}-{plan.spec.gpu or '_'.join(plan.spec.targets) or 'any'}"
    timings = cache.timing_cache(name)
    job = BuildJob(
        network=plan.network,
        graph=plan.prepared.graph,
        precision=plan.spec.precision if plan.prepared.half else "fp32",
        profiles=plan.spec.profiles,
        options=dict(plan.spec.options),
        targets=plan.spec.targets,
        kept=plan.prepared.kept,
        timing_cache=timings,
    )
    begin = time.perf_counter()
    isolate = backend.isolates if request.isolate is None else request.isolate
    output = _with_or_without_timings(job, progress, partial(build_isolated, backend) if isolate else backend.build)
    seconds = time.perf_counter() - begin
    cache.merge_timing_cache(name, output.timing_cache, timings, backend.merge_timing)
    record = {
        "io": [t.to_dict() for t in output.io],
        "built": {
            "seconds": round(seconds, 3),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "driver": plan.identity.driver,
            "isolated": isolate,
            "messages": list(output.messages),
        },
        "prepared": {
            "passes": list(plan.prepared.applied),
            "notes": [*plan.prepared.notes, *output.notes],
            "findings": [asdict(f) for f in plan.prepared.findings],
            "kept": list(plan.prepared.kept),
        },
    }
    if plan.network in request.kept:
        record["mixed"] = dict(request.kept[plan.network].record)
    return Fresh(output.payload, record)


def _with_or_without_timings(
    job: BuildJob, progress: Progress, build: Callable[[BuildJob, Progress], BuildOutput]
) -> BuildOutput:
    """What `build` gives. If it fails over its timing cache it is tried once more without, and the fresh timings replace the old.

    TensorRT 8.6.0 now and then cannot read what it merged itself ("The timing cache will not be used!"), and then finds no kernel.
    """
    try:
        return build(job, progress)
    except BackendError as error:
        if not job.timing_cache or "timing cache" not in error.message:
            raise
    except MemoryError:
        raise BackendError(f"out of memory while building network {job.network!r}") from None
    output = build(replace(job, timing_cache=b""), progress)
    return replace(
        output, notes=(*output.notes, "built again without the timing cache, which the builder could not read")
    )


def _origin(bundle: Bundle, hooks: MatcherHooks, request: BuildRequest) -> dict[str, Any]:
    identity = bundle.manifest.matcher
    return {
        "bundle_sha256": bundle.sha256,
        "matcher": f"{identity.id}:{identity.variant}",
        "code_sha256": code_fingerprint(hooks),
        "options": dict(request.options),
        "random_weights": bundle.manifest.random_weights,
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()


def find_built(
    bundle: Bundle,
    hooks: MatcherHooks,
    backend: BuildingBackend,
    precision: str,
    cache: EngineCache,
    trust: Collection[str],
) -> dict[str, Entry] | None:
    """The engines of the last build of this very bundle, by the present code, for this device and precision; or None.

    Needs neither onnx nor a builder: the sidecars tell.
    """
    identity = backend.identity(())
    code = code_fingerprint(hooks)
    found: dict[str, dict[str, Entry]] = {}
    for key in cache.committed():
        try:
            entry = cache.find(key, trust)
        except BackendError:
            continue  # whoever builds it anew puts it into quarantine; `engines verify` tells why
        if entry is None or not _fits(entry.spec, backend.name, precision, identity):
            continue
        for origin in entry.record["origins"]:
            if origin["bundle_sha256"] == bundle.sha256 and origin["code_sha256"] == code:
                found.setdefault(origin["request"], {})[origin["network"]] = entry
    names = {n.name for n in bundle.manifest.networks}
    whole = [engines for engines in found.values() if names <= set(engines)]
    return max(whole, key=lambda engines: max(e.used for e in engines.values()), default=None)


def _fits(spec: EngineSpec, backend: str, precision: str, identity: Identity) -> bool:
    if spec.targets:
        here = {f"sm{g.compute_capability.replace('.', '')}" for g in probe().gpus}
        device = bool(here & set(spec.targets))
    else:
        device = (spec.compute_capability, spec.gpu) == (identity.compute_capability, identity.gpu)
    same = (spec.backend, spec.backend_version, spec.platform) == (backend, identity.version, identity.platform)
    return same and spec.precision == precision and device
