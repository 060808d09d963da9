"""`matchrt build`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from matchrt.cli.options import parse_assignments
from matchrt.cli.output import json_option, print_facts, print_json, print_table, progress_bars, warn
from matchrt.errors import UsageError

if TYPE_CHECKING:
    from matchrt.bundle import Bundle
    from matchrt.engines.build import BuildRequest, Built, Plan
    from matchrt.plugins import MatcherHooks
    from matchrt.progress import Progress

_OPTIONS = (
    click.option("--backend", help="tensorrt, tensorrt_rtx, onnxruntime, or a plugin's."),
    click.option("--precision", default="fp32", show_default=True, help="fp32, fp16 or mixed."),
    click.option("--batch", metavar="N|MIN:OPT:MAX", help="Pairs (or images) run at once."),
    click.option("--shapes", multiple=True, metavar="AXIS=N|MIN:OPT:MAX,…", help="Narrow the bundle's dynamic axes."),
    click.option("--workspace", type=int, metavar="MIB", help="Memory that kernels may use while running."),
    click.option("--level", type=click.IntRange(0, 5), help="Effort of the builder; 3 by default."),
    click.option("--target", metavar="sm89,…", help="Architectures to build for instead of this machine's GPU."),
    click.option("--tf32", is_flag=True, default=None, help="Let float32 products lose precision."),
    click.option("--option", "assignments", multiple=True, metavar="NAME=VALUE", help="Another option of the backend."),
)


def build_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what is built; `request_from` reads them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _chosen(backend: str | None) -> str:
    if backend is None:
        raise UsageError("name the backend to build for with --backend", hint="`matchrt plugins` lists them")
    return backend


def request_from(
    precision: str,
    batch: str | None,
    shapes: tuple[str, ...],
    target: str | None,
    assignments: tuple[str, ...],
    isolate: bool | None = None,
    **named: object,
) -> BuildRequest:
    """What the options ask for. Raises `UsageError`."""
    from matchrt.engines.build import BuildRequest
    from matchrt.engines.profiles import parse_range, parse_shapes

    return BuildRequest(
        precision=precision,
        batch=None if batch is None else parse_range(batch, "--batch"),
        shapes=parse_shapes(shapes),
        options=parse_assignments(assignments, **named),
        targets=tuple(t.strip().lower() for t in (target or "").split(",") if t.strip()),
        isolate=isolate,
    )


@click.command("build")
@click.argument("bundle", type=click.Path(path_type=Path))
@build_options
@click.option(
    "--isolate/--no-isolate", default=None, help="Build in a process of its own; the backend decides by default."
)
@click.option(
    "--tolerance", type=click.FloatRange(min=0), metavar="PX", help="mixed: allowed mean error of coordinates."
)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="mixed: pairs to measure on; default: the shipped ones.",
)
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Networks built at a time.")
@click.option("--network", "networks", multiple=True, metavar="NAME", help="Only this one; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Prepare and lint, say what would be built, build nothing.")
@json_option
def command(
    bundle: Path,
    backend: str | None,
    precision: str,
    batch: str | None,
    shapes: tuple[str, ...],
    workspace: int | None,
    level: int | None,
    target: str | None,
    tf32: bool | None,
    assignments: tuple[str, ...],
    isolate: bool | None,
    tolerance: float | None,
    pairs: Path | None,
    jobs: int,
    networks: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> int:
    """Build the engines of BUNDLE, each network for itself; what was built before comes from the cache.

    Precision mixed searches for the fewest blocks that must stay in float32 so that the matches stay what they are.
    """
    request = request_from(
        precision, batch, shapes, target, assignments, isolate, workspace=workspace, level=level, tf32=tf32
    )
    opened, hooks, made = open_for_build(bundle, _chosen(backend))
    only = _only(opened, networks)
    if precision in made.runs_as_is:
        return _nothing_to_build(opened, made, request, only, as_json)
    from matchrt.engines import EngineCache
    from matchrt.engines.build import build_engines, planned

    cache = EngineCache()
    with progress_bars(quiet=as_json) as progress:
        if precision == "mixed":
            request = _with_kept(opened, hooks, made, request, tolerance, pairs, progress)
        if dry_run:
            with planned(opened, hooks, made, request, cache, progress, only) as plans:
                pass
            return _show_plans(plans, as_json)
        built = build_engines(opened, hooks, made, request, cache, progress, only, jobs=jobs)
    _show_built(opened, built, as_json)
    return 0


def open_for_build(path: Path, backend: str) -> tuple[Bundle, MatcherHooks, Any]:
    """The bundle, its hooks and a backend that builds. Raises `UsageError`, `BundleError`."""
    from matchrt.bundle import read_bundle
    from matchrt.plugins import MatcherHooks, get_plugins

    plugins = get_plugins()
    if backend not in plugins.backends:
        raise UsageError(f"no backend is called {backend!r}", hint=f"known: {', '.join(plugins.backends)}")
    opened = read_bundle(path)
    made = plugins.backends[backend].create()
    if not hasattr(made, "build"):
        raise UsageError(
            f"backend {backend!r} builds no engines", hint=f"use it at once: matchrt match --backend {backend}"
        )
    return opened, MatcherHooks(plugins, plugins.matcher(opened.manifest.matcher.id)), made


def _only(bundle: Bundle, networks: tuple[str, ...]) -> tuple[str, ...]:
    """The networks to build: those that are named, or all. Raises `UsageError` for a name that the bundle lacks."""
    known = tuple(n.name for n in bundle.manifest.networks)
    for name in networks:
        if name not in known:
            raise UsageError(f"the bundle has no network {name!r}", hint=f"it has {', '.join(known)}")
    return tuple(n for n in known if not networks or n in networks)


def _with_kept(
    bundle: Bundle,
    hooks: MatcherHooks,
    backend: Any,
    request: BuildRequest,
    tolerance: float | None,
    pairs: Path | None,
    progress: Progress,
) -> BuildRequest:
    """`request` with what a search found must stay in float32."""
    from dataclasses import replace

    from matchrt.verify.mixed import choose_kept

    kept = choose_kept(bundle, hooks, backend, tolerance_px=tolerance, pairs=pairs, request=request, progress=progress)
    for name, chosen in kept.items():
        record = chosen.record
        blocks = ", ".join(record["blocks"]) or "none"
        warn(
            f"{name}: float32 blocks besides the matcher's own rules: {blocks} ({len(record['trials'])} trials, {record['measured']})"
        )
    return replace(request, kept=kept)


def _nothing_to_build(bundle: Bundle, backend: Any, request: BuildRequest, only: tuple[str, ...], as_json: bool) -> int:
    """Load every network of `only` once, to say honestly that it runs, and that nothing was built."""
    import time

    options = backend.options(request.options)
    if request.batch or request.shapes or request.targets:
        raise UsageError(
            f"{backend.name} in {request.precision} runs the bundle's graphs as they are, for all their shapes",
            hint="leave --batch, --shapes and --target out",
        )
    seconds = {}
    for name in only:
        begin = time.perf_counter()
        backend.open(name, bundle.graph(name), options).close()
        seconds[name] = round(time.perf_counter() - begin, 3)
    said = f"nothing to build: {backend.name} runs the bundle's {request.precision} graphs as they are; each was loaded once"
    if as_json:
        print_json({"backend": backend.name, "built": [], "note": said, "loaded_seconds": seconds, "options": options})
    else:
        print_facts([("build", said), ("loaded", ", ".join(f"{n} {s:.2f} s" for n, s in seconds.items()))])
    return 0


def _show_plans(plans: list[Plan], as_json: bool) -> int:
    refused = [f for p in plans for f in p.prepared.findings if f.severity == "error"]
    if as_json:
        print_json({"dry_run": True, "buildable": not refused, "networks": [p.to_dict() for p in plans]})
        return 1 if refused else 0
    print_table(
        ("network", "key", "cached", "profiles"),
        [(p.network, p.spec.key()[:16], "yes" if p.cached else "no", _profiles(p)) for p in plans],
    )
    findings = [
        (p.network, f.severity, f.node, f.operator, f.limit, f.remedy) for p in plans for f in p.prepared.findings
    ]
    if findings:
        print_table(("network", "", "node", "operator", "limit", "remedy"), findings)
    return 1 if refused else 0


def _profiles(plan: Plan) -> str:
    def shape(sizes: tuple[int, ...]) -> str:
        return "x".join(map(str, sizes)) or "scalar"

    return "\n".join(
        f"{p.input} {shape(p.min)}" + ("" if p.fixed else f" … {shape(p.opt)} … {shape(p.max)}")
        for p in plan.spec.profiles
    )


def _show_built(bundle: Bundle, built: list[Built], as_json: bool) -> None:
    if bundle.manifest.random_weights:
        warn("RANDOM WEIGHTS: this bundle is for tests and speed only, its matches mean nothing")
    if as_json:
        print_json({"built": [_built(b) for b in built]})
        return
    rows = [
        (
            b.plan.network,
            f"{b.plan.spec.backend} {b.plan.spec.backend_version}",
            b.plan.spec.precision,
            b.entry.key[:16],
            f"{b.entry.size / 1e6:.1f} MB",
            "from the cache" if b.hit else f"built in {b.seconds:.1f} s",
        )
        for b in built
    ]
    print_table(("network", "backend", "precision", "engine", "size", ""), rows)
    for b in built:
        for note in b.entry.record["prepared"]["notes"]:
            warn(f"{b.plan.network}: {note}")
        for found in b.entry.record["prepared"]["findings"]:
            if found["severity"] == "warning":
                warn(f"{b.plan.network}: {found['node'] or found['operator']}: {found['limit']}; {found['remedy']}")
        messages = b.entry.record["built"]["messages"]
        if messages and not b.hit:
            warn(
                f"{b.plan.network}: {len(messages)} warnings of the builder, see `matchrt engines inspect {b.entry.key[:16]}`"
            )


def _built(built: Built) -> dict[str, Any]:
    return {
        "network": built.plan.network,
        "key": built.entry.key,
        "cached": built.hit,
        "seconds": round(built.seconds, 3),
        "size": built.entry.size,
        "sha256": built.entry.sha256,
        "spec": built.plan.spec.to_dict(),
        "built": built.entry.record["built"],
        "notes": built.entry.record["prepared"]["notes"],
    }
