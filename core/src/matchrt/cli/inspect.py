"""`matchrt inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from matchrt.cli.output import json_option, print_facts, print_json, print_table, warn
from matchrt.errors import EnvironmentLackError, WeightsError

if TYPE_CHECKING:
    from matchrt.bundle import Bundle
    from matchrt.weights.describe import CheckpointDescription


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def command(path: Path, as_json: bool) -> None:
    """Tell what a bundle or a checkpoint holds, and which matcher a checkpoint fits."""
    if not path.exists():
        raise WeightsError(f"there is no {path}", hint="give a checkpoint file or a bundle folder")
    if path.is_dir() or path.name == "bundle.json":
        _inspect_bundle(path, as_json)
    else:
        _inspect_checkpoint(path, as_json)


def _inspect_bundle(path: Path, as_json: bool) -> None:
    from matchrt.bundle import read_bundle

    bundle = read_bundle(path)
    if as_json:
        data = {"kind": "bundle", "path": str(bundle.path), "sha256": bundle.sha256}
        print_json({**data, "manifest": bundle.manifest.model_dump(mode="json")})
        return
    _show_bundle(bundle)


def _show_bundle(bundle: Bundle) -> None:
    manifest = bundle.manifest
    counts = manifest.weights.report.get("counts", {})
    sources = ", ".join(f"{s.filename} (sha256 {s.sha256[:12]}…)" for s in manifest.weights.sources)
    seed = manifest.weights.random_seed
    check = manifest.check
    print_facts(
        [
            ("bundle", f"{bundle.path}  sha256 {bundle.sha256[:16]}…, all files as converted"),
            ("matcher", f"{manifest.matcher.id}:{manifest.matcher.variant}, {manifest.matcher.title}"),
            ("weights", f"RANDOM (seed {seed}), for tests and speed only" if seed is not None else sources),
            ("account", ", ".join(f"{v} {k}" for k, v in counts.items()) or "-"),
            ("licence", manifest.weights.licence),
            ("settings", ", ".join(f"{k}={v}" for k, v in {**manifest.settings, **manifest.match_settings}.items())),
            ("patches", ", ".join(p.name for p in manifest.patches) or "none"),
            ("passes", ", ".join(p.name for p in manifest.passes) or "none"),
            ("check", "passed" if check.get("passed") else f"NOT PASSED: {check}"),
            ("tools", ", ".join(f"{k} {v}" for k, v in manifest.tools.items())),
            ("made", manifest.created),
        ]
    )
    rows = [
        (n.name, f"{n.file} opset {n.opset}", way, t.name, f"{t.dtype}[{', '.join(map(str, t.shape))}]", t.meaning)
        for n in manifest.networks
        for way, tensors in (("in", n.inputs), ("out", n.outputs))
        for t in tensors
    ]
    print_table(("network", "file", "", "tensor", "type", "meaning"), rows)
    if manifest.random_weights:
        warn("RANDOM WEIGHTS: this bundle is for tests and speed only, its matches mean nothing")


def _inspect_checkpoint(path: Path, as_json: bool) -> None:
    from matchrt.weights.describe import describe

    try:
        description = describe(path)
    except ModuleNotFoundError as error:
        raise EnvironmentLackError(
            f"reading {path} needs {error.name}, which is not installed", hint="pip install 'matchrt[convert]'"
        ) from None
    fits = _fits(description)
    notes = _second_files(fits)
    if as_json:
        print_json({"kind": "checkpoint", **description.to_dict(), "fits": fits, "second_files": notes})
        return
    print_facts(
        [
            ("file", f"{description.path}  {description.size_bytes / 1e6:.1f} MB, sha256 {description.sha256[:16]}…"),
            ("container", description.container),
            ("wrappers", ", ".join(description.wrappers) or "none"),
            ("tensors", f"{description.tensors}, {description.elements / 1e6:.2f} M elements"),
            ("dtypes", ", ".join(f"{n} {d}" for d, n in description.dtypes.items())),
        ]
    )
    groups = [(g.name, g.count, f"{g.elements:,}", f"{g.nbytes / 1e6:.2f} MB") for g in description.groups]
    print_table(("keys that begin with", "tensors", "elements", "bytes"), groups)
    rows = [
        (
            f"{f['matcher']}:{f['variant']}",
            f"{f['share']:.1%}",
            f["matched"],
            f["missing"],
            f["unexpected"],
            f["misshapen"],
            f"{f['backfillable']} {', '.join(f['sources'])}" if f["backfillable"] else "",
            f["problem"],
        )
        for f in fits
    ]
    if rows:
        columns = ("fits", "share", "matched", "missing", "unexpected", "misshapen", "second file", "remark")
        print_table(columns, rows, "names and shapes after each matcher's rules")
    for note in notes:
        click.echo(
            f"{note['role']}: {note['tensors']} of the network's tensors come from a second file, {note['option']} FILE"
        )
        click.echo(f"  {note['note']}")


def _second_files(fits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The second files that the best fit needs besides this one, each once."""
    from matchrt.plugins import get_plugins

    if not fits or fits[0]["share"] < 1:
        return []
    best = fits[0]
    variant = get_plugins().matcher(best["matcher"]).variant(best["variant"])
    return [
        {
            "role": file.role,
            "option": f"--weights-{file.role}",
            "file": file.filename,
            "url": file.url,
            "tensors": best["backfillable"],
            "note": file.note or f"for example {file.filename}",
        }
        for file in variant.weights
        if file.role in best["sources"]
    ]


def _fits(description: CheckpointDescription) -> list[dict[str, Any]]:
    try:
        from matchrt.export.candidates import candidates
        from matchrt.weights.fit import fit
    except ModuleNotFoundError as error:
        warn(
            f"which matcher it fits is not told, because {error.name} is not installed (pip install 'matchrt[convert]')"
        )
        return []
    from matchrt.plugins import get_plugins

    return [f.to_dict() for f in fit(description.shapes, candidates(get_plugins(), list(description.shapes)))]
