"""`matchrt engines`: what the engine cache holds. Reads sidecars only, so it needs neither GPU nor backend (`why` on a bundle excepted)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from matchrt.cli.build import build_options, open_for_build, request_from
from matchrt.cli.output import json_option, print_facts, print_json, print_table
from matchrt.errors import UsageError

if TYPE_CHECKING:
    from matchrt.engines.cache import Entry
    from matchrt.engines.spec import EngineSpec


@click.group("engines")
def command() -> None:
    """List, check, explain and remove built engines."""


@command.command("list")
@json_option
def list_engines(as_json: bool) -> None:
    """List the engines in the cache, and those that would not be loaded, with the reason."""
    from matchrt.engines import EngineCache
    from matchrt.errors import BackendError

    cache = EngineCache()
    entries, unsound = [], []
    for key in cache.committed():
        try:
            entry = cache.find(key)
        except BackendError as error:
            unsound.append({"key": key, "problem": error.message})
            continue
        if entry is not None:
            entries.append(entry)
    entries.sort(key=lambda e: -e.used)
    if as_json:
        print_json({"cache": str(cache.root), "engines": [_summary(e) for e in entries], "unsound": unsound})
        return
    rows = [
        (
            e.key[:16],
            e.record["origins"][0]["matcher"],
            e.network,
            f"{e.spec.backend} {e.spec.backend_version}",
            e.spec.precision,
            e.spec.gpu or ",".join(e.spec.targets) or "-",
            f"{e.size / 1e6:.1f} MB",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(e.used)),
        )
        for e in entries
    ]
    print_table(
        ("engine", "matcher", "network", "backend", "precision", "for", "size", "last used"), rows, str(cache.root)
    )
    if unsound:
        print_table(("engine", "would not be loaded because"), [(u["key"][:16], u["problem"]) for u in unsound])


@command.command("inspect")
@click.argument("key")
@json_option
def inspect(key: str, as_json: bool) -> None:
    """Show all that is known of engine KEY (its first digits suffice)."""
    entry = _entry(key)
    if as_json:
        print_json({**entry.record, "used": entry.used})
        return
    built, prepared = entry.record["built"], entry.record["prepared"]
    print_facts(
        [
            ("engine", f"{entry.key}  {entry.size / 1e6:.1f} MB"),
            ("sha256", entry.sha256),
            *[(n, v if v not in ("", []) else "-") for n, v in entry.spec.to_dict().items() if n != "profiles"],
            *[("profile", f"{p.input} {list(p.min)} … {list(p.opt)} … {list(p.max)}") for p in entry.spec.profiles],
            *[(t.kind, f"{t.name} {t.dtype}{list(t.shape)}") for t in entry.io],
            ("passes", ", ".join(prepared["passes"]) or "none"),
            *[("note", n) for n in prepared["notes"]],
            *[("builder", " ".join(m.split())) for m in built["messages"]],
            ("built", f"{built['date']} in {built['seconds']:.1f} s"),
            *[
                ("for", f"{o['matcher']} {o['network']}, bundle {o['bundle_sha256'][:16]}…")
                for o in entry.record["origins"]
            ],
        ]
    )


@command.command("verify")
@click.argument("key", required=False)
@json_option
def verify(key: str | None, as_json: bool) -> int:
    """Check owner, mode, size and sha256 of engine KEY, or of all; exits with 1 if one would not be loaded."""
    from matchrt.engines import EngineCache

    cache = EngineCache()
    keys = cache.committed() if key is None else [cache.resolve(key)]
    found = {k: cache.problems(k) for k in keys}
    if as_json:
        print_json({"engines": [{"key": k, "sound": not p, "problem": p or None} for k, p in found.items()]})
    else:
        print_table(("engine", "state"), [(k[:16], p or "as built") for k, p in found.items()])
    return 1 if any(found.values()) else 0


@command.command("prune")
@click.option("--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Engines not used for so long.")
@click.option("--max-size", metavar="SIZE", help="Then the longest unused until the rest fits: 20GB, 500MB.")
@click.option("--dry-run", is_flag=True, help="Say what would go, remove nothing.")
@json_option
def prune_engines(older_than: float | None, max_size: str | None, dry_run: bool, as_json: bool) -> None:
    """Remove old engines, quarantined ones, and what interrupted builds left behind."""
    from matchrt.engines import EngineCache
    from matchrt.engines.prune import prune

    limit = None if max_size is None else _bytes(max_size)
    done = prune(EngineCache(), older_than_days=older_than, max_bytes=limit, dry_run=dry_run)
    if as_json:
        data = {"engines": list(done.engines), "leftovers": list(done.leftovers), "freed": done.freed}
        print_json({**data, "dry_run": dry_run})
        return
    print_facts(
        [
            ("would remove" if dry_run else "removed", f"{len(done.engines)} engines, {len(done.leftovers)} leftovers"),
            ("freed", f"{done.freed / 1e6:.1f} MB"),
        ]
    )


@command.command("why")
@click.argument("what")
@click.argument("other", required=False)
@build_options
@json_option
def why(what: str, other: str | None, as_json: bool, backend: str | None, **options: Any) -> None:
    """Tell why an engine is, or is not, in the cache: what differs from the nearest one that is.

    WHAT is a bundle, with the options of `build`; or an engine's KEY, compared with OTHER or with the nearest one.
    """
    from matchrt.engines import EngineCache

    cache = EngineCache()
    if not Path(what).is_dir():
        entry = _entry(what)
        against = _entry(other) if other else cache.nearest(entry.spec, entry.network)
        answers = [_compare(entry.network, entry.spec, True, against)]
    else:
        answers = _why_bundle(cache, Path(what), backend, options)
    if as_json:
        print_json({"networks": answers})
        return
    for answer in answers:
        state = "is in the cache" if answer["cached"] else "is not in the cache"
        print_facts([(answer["network"], f"engine {answer['key'][:16]}… {state}")])
        if answer["nearest"] is None:
            print_facts([("nearest", "there is no other engine")])
            continue
        rows = [(d["field"], d["wanted"], d["there"]) for d in answer["differences"]]
        print_table(("field", "this one", "the other"), rows, f"nearest: {answer['nearest'][:16]}…")


def _why_bundle(cache: Any, path: Path, backend: str | None, options: dict[str, Any]) -> list[dict[str, Any]]:
    from matchrt.engines.build import planned
    from matchrt.progress import Silent

    if backend is None:
        raise UsageError("name the --backend that the bundle would be built for")
    bundle, hooks, made = open_for_build(path, backend)
    with planned(bundle, hooks, made, request_from(**options), cache, Silent()) as plans:
        pass
    return [_compare(p.network, p.spec, p.cached, cache.nearest(p.spec, p.network)) for p in plans]


def _compare(network: str, spec: EngineSpec, cached: bool, other: Entry | None) -> dict[str, Any]:
    differences = [] if other is None else spec.differences(other.spec)
    return {
        "network": network,
        "key": spec.key(),
        "cached": cached,
        "nearest": other.key if other else None,
        "differences": [{"field": f, "wanted": a, "there": b} for f, a, b in differences],
    }


def _entry(prefix: str) -> Entry:
    from matchrt.engines import EngineCache

    cache = EngineCache()
    entry = cache.find(cache.resolve(prefix))
    assert entry is not None
    return entry


def _summary(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "network": entry.network,
        "matcher": entry.record["origins"][0]["matcher"],
        "size": entry.size,
        "sha256": entry.sha256,
        "used": entry.used,
        "spec": entry.spec.to_dict(),
    }


def _bytes(text: str) -> int:
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number = text.rstrip("BKMGTbkmgt ")
    unit = text[len(number) :].strip().upper()
    try:
        return int(float(number) * units[unit])
    except (ValueError, KeyError):
        raise UsageError(f"--max-size takes a size such as 20GB or 500MB, got {text!r}") from None
