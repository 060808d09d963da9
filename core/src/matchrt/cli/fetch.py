"""`matchrt fetch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from matchrt.cli.output import json_option, print_facts, print_json, progress_bars
from matchrt.errors import EnvironmentLackError, UsageError
from matchrt.model import MatcherSpec, Variant, WeightsFile
from matchrt.progress import Progress, stage

if TYPE_CHECKING:
    from matchrt.weights.fetch import Fetched


@click.command("fetch")
@click.argument("matcher", metavar="MATCHER[:VARIANT]")
@click.option(
    "--accept-licence", is_flag=True, help="You have read the licence shown and may use the weights under it."
)
@click.option("--offline", is_flag=True, help="Do not touch the network (also MATCHRT_OFFLINE=1).")
@click.option(
    "--via", type=click.Choice(["timm"]), help="Get what the timm library publishes too through it (RoMa's DINOv2)."
)
@json_option
def command(matcher: str, accept_licence: bool, offline: bool, via: str | None, as_json: bool) -> None:
    """Download a matcher's published weights into the cache; resumes, and checks the sha256.

    Where the hash is not known in advance, the first download records it and later ones must agree.
    """
    from matchrt.plugins import get_plugins

    matcher_id, _, variant_name = matcher.partition(":")
    spec = get_plugins().matcher(matcher_id)
    variant = spec.variant(variant_name or None)
    wanted = [w for w in variant.weights if not w.package]
    if via and not any(w.timm for w in wanted):
        raise UsageError(f"timm publishes no weights of {spec.id}:{variant.name}", hint="leave --via out")
    _consent(spec, variant, wanted, accept_licence)
    with progress_bars(quiet=as_json) as progress:
        results = [_fetch(spec, file, offline, bool(via and file.timm), progress) for file in wanted]
    if as_json:
        print_json({"matcher": spec.id, "variant": variant.name, "files": results})
    elif not wanted:
        click.echo(f"{spec.id}:{variant.name} ships with its package; there is nothing to fetch")
    else:
        print_facts([(str(r["role"]), f"{r['path']}  sha256 {r['sha256']}  ({r['licence']})") for r in results])


def _consent(spec: MatcherSpec, variant: Variant, files: list[WeightsFile], accepted: bool) -> None:
    for file in files:
        click.echo(f"{file.filename}: licence {file.licence}", err=True)
    restricted = [f for f in files if not f.free_licence]
    if restricted and not accepted:
        names = ", ".join(f"{f.filename} ({f.licence})" for f in restricted)
        raise EnvironmentLackError(
            f"{spec.id}:{variant.name} includes weights whose licence restricts use: {names}",
            hint="read that licence, then add --accept-licence; or bring files of your own with --weights",
        )


def _fetch(
    spec: MatcherSpec, file: WeightsFile, offline: bool, through_timm: bool, progress: Progress
) -> dict[str, object]:
    from matchrt.weights.timm_source import fetch_with_timm

    if through_timm:
        with stage(progress, f"{file.timm} through timm"):
            fetched = fetch_with_timm(spec, file, offline=offline)
    else:
        fetched = _download(spec, file, offline, progress)
    return {
        "role": file.role or "main",
        "path": str(fetched.path),
        "sha256": fetched.sha256,
        "size": fetched.size_bytes,
        "held_to": fetched.trust,
        "downloaded": fetched.downloaded,
        "via": "timm" if through_timm else "url",
        "licence": file.licence,
    }


def _download(spec: MatcherSpec, file: WeightsFile, offline: bool, progress: Progress) -> Fetched:
    from matchrt.weights.fetch import fetch
    from matchrt.weights.locate import fetched_path

    known = 0

    def report(done: int, total: int | None) -> None:
        nonlocal known
        progress.advance(done - known, f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB")
        known = done

    with stage(progress, file.filename, file.size):
        return fetch(
            file.url, fetched_path(spec, file), sha256=file.sha256, size=file.size, progress=report, offline=offline
        )
