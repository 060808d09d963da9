"""`matchrt bench`."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from matchrt.cli.options import (
    SettingsCommand,
    checkpoint_option,
    config_option,
    file_settings,
    parse_assignments,
    set_option,
)
from matchrt.cli.output import json_option, print_json, print_table, progress_bars, warn
from matchrt.errors import UsageError

if TYPE_CHECKING:
    from matchrt.bench.contenders import Contender
    from matchrt.bench.race import Course, Entry
    from matchrt.model import Size


@click.command("bench", cls=SettingsCommand)
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE…")
@click.option("--backend", "backends", default="onnxruntime", show_default=True, metavar="A,B", help="Backends.")
@click.option("--precision", "precisions", default="fp32", show_default=True, metavar="A,B", help="Precisions.")
@click.option("--provider", help="Execution provider of onnxruntime: cpu, cuda, tensorrt, rtx.")
@click.option("--batch", "batches", default="1", show_default=True, metavar="N,M", help="Pairs in a call.")
@click.option("--size", metavar="HxW", help="Size of the images; a bundle that has one baked in must have this one.")
@click.option(
    "--against",
    multiple=True,
    metavar="PEERS",
    help="torch, torch-fp16, torch-half, torch-compile (all its modes), or PATH.py:FUNCTION[:NAME=VALUE]…",
)
@click.option("--device", help="Of the PyTorch peers: cpu or cuda; by default where the backends run.")
@click.option("--pairs", type=click.Path(dir_okay=False, path_type=Path), help="Two image files a line.")
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Rounds at most.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Time for each contender, about.")
@click.option("--warm-up", type=float, default=1.0, show_default=True, help="Seconds before each is timed.")
@click.option("--modes", default="engine,host,stages,stream", show_default=True, help="What to time.")
@click.option("--stream-pairs", type=int, default=0, help="Pairs in one streaming run; 0: by device.")
@click.option(
    "--stream-workers",
    type=int,
    default=0,
    help="Threads that read and preprocess; 0: one a core, at most 4 (processes: 8).",
)
@click.option(
    "--stream-processes", is_flag=True, help="Give each of them a process, which has a Python lock of its own."
)
@click.option("--lanes", type=int, default=0, help="Batches at a time when streaming; 0: two on a GPU.")
@click.option(
    "--sweep", metavar="AXIS[=A,B]", help="Print how time grows with batch, size, or a setting of the bundles."
)
@click.option(
    "--layers", type=click.IntRange(0), default=0, metavar="N", help="Time the N slowest layers too, in a run apart."
)
@click.option("--sequential", is_flag=True, help="One contender after another: where memory does not hold all.")
@click.option("--interpreter", "interpreters", multiple=True, metavar="BACKEND=PATH", help="Python for that backend.")
@click.option("--threads", type=int, default=0, help="CPU threads of every contender; 0: their own choice.")
@click.option("--trust", multiple=True, metavar="SHA256", help="Load this engine though another user built it.")
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), metavar="OUT.json", help="Append to a receipt."
)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="OUT.png", help="Draw the times.")
@checkpoint_option
@set_option
@config_option
@json_option
def command(
    bundles: tuple[str, ...],
    backends: str,
    precisions: str,
    provider: str | None,
    batches: str,
    size: str | None,
    against: tuple[str, ...],
    device: str | None,
    pairs: Path | None,
    sweep: str | None,
    interpreters: tuple[str, ...],
    save: Path | None,
    plot: Path | None,
    checkpoints: tuple[str, ...],
    assignments: tuple[str, ...],
    config: Path | None,
    as_json: bool,
    modes: str,
    **how: Any,
) -> int:
    """Time BUNDLEs on backends, and what you would use instead, each in a process of its own, in turns.

    Ratios are of contenders of this very call, never of older receipts. A matcher's fixed number of keypoints is padded, so its time
    does not depend on the pictures. Exit code 1 if a contender failed.
    """
    from matchrt.bench.contenders import plan, read_bundles, split_against
    from matchrt.bench.plot import require_matplotlib
    from matchrt.bench.race import SHARES, Course
    from matchrt.bench.receipt import append_run, command_line, read_receipt, run_record
    from matchrt.files.pairs import read_pairs
    from matchrt.workers import Interpreters

    if plot is not None:
        require_matplotlib()
    if save is not None and save.exists():
        read_receipt(save)
    axis, sizes, batch_texts = _sweep(sweep, size, batches)
    chosen = tuple(_split(modes))
    if "engine" not in chosen or not set(chosen) <= set(SHARES):
        raise UsageError(f"--modes {modes}: must be of {', '.join(SHARES)}, engine among them")
    contenders = plan(
        read_bundles(bundles),
        backends=_split(backends),
        precisions=_split(precisions),
        batches=[_batch(b) for b in batch_texts],
        against=split_against(against),
        provider=provider,
        device=device,
    )
    course = Course(
        pairs=[(p.image0, p.image1) for p in read_pairs(pairs)],
        modes=chosen,
        settings={**file_settings(config), **parse_assignments(assignments)},
        checkpoints=checkpoints,
        interpreters=Interpreters.parse(interpreters),
        **how,
    )
    records, failures = _race(contenders, course, sizes, quiet=as_json)
    typed = command_line(click.get_current_context().obj or ())
    run = run_record("bench", typed, rounds="interleaved" if not course.sequential else "sequential",
                     threads=course.threads, contenders=records)  # fmt: skip
    if save is not None:
        append_run(save, run)
    if plot is not None:
        from matchrt.bench.plot import plot_run

        plot_run(run, plot, axis)
    _report(run, axis, as_json)
    return 1 if failures else 0


def _race(
    contenders: list[Contender], course: Course, sizes: list[Size | None], quiet: bool
) -> tuple[list[dict[str, Any]], list[Entry]]:
    from matchrt.bench.inputs import fit_size, resized
    from matchrt.bench.race import failed, race

    records, failures = [], []
    with tempfile.TemporaryDirectory(prefix="matchrt-bench-") as folder, progress_bars(quiet) as progress:
        for size in sizes:
            settings = dict(course.settings)
            for contender in contenders if size else []:
                assert size is not None
                settings.update(fit_size(contender.bundle.manifest, size))
            images = resized(course.pairs, size, Path(folder)) if size else course.pairs
            entries = race(contenders, replace(course, pairs=images, settings=settings), progress)
            swept = {"swept": {"size": list(size)}} if size else {}
            records += [{**e.record(), **swept} for e in entries]
            failures += failed(entries)
    for record in records:
        for mode, reason in record.get("left_out", {}).items():
            warn(f"{record['bundle']}: {record['label']} was not timed in mode {mode}: {reason}")
    for entry in failures:
        assert entry.error is not None
        warn(f"{entry.contender.bundle_name}: {entry.contender.label} failed: {entry.error['message']}")
        if entry.error["hint"]:
            click.echo(f"  -> {entry.error['hint']}", err=True)
    return records, failures


def _report(run: dict[str, Any], axis: str | None, as_json: bool) -> None:
    from matchrt.bench.table import COLUMNS, Group, compare, groups, growth, layer_rows, part_rows, rows, used_columns

    comparison = compare(run)
    lines = growth(run, axis) if axis else []
    if as_json:
        print_json({**run, "comparison": comparison, "growth": lines})
        return
    for group, members in groups(run).items():
        ours = [c for c in comparison if Group(c["bundle"], c["batch"], tuple(c["size"])) == group]
        table = list(rows(members, ours))
        used = used_columns(table)
        device = next((m["device"]["name"] for m in members if "device" in m), "")
        random = ", RANDOM WEIGHTS" if members[0]["random_weights"] else ""
        title = f"{group.title} ({members[0]['matcher']}{random}), {device}"
        print_table([COLUMNS[i] for i in used], [[row[i] for i in used] for row in table], title)
        parts = list(part_rows(members))
        if parts:
            print_table(("contender", "part", "ms"), parts)
        layers = list(layer_rows(members))
        if layers:
            print_table(("contender", "network", "layer", "ms", "share"), layers)
    for line in lines:
        click.echo(f"time grows as {axis}^{line['slope']:.2f}: {line['label']}")
    click.echo("ms: one pair, median (quartiles). * the best peer besides eager fp32.", err=True)


def _split(text: str) -> list[str]:
    return list(dict.fromkeys(t.strip() for t in text.split(",") if t.strip()))


def _batch(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--batch takes numbers from 1, got {text!r}")
    return int(text)


def _sweep(sweep: str | None, size: str | None, batches: str) -> tuple[str | None, list[Size | None], list[str]]:
    """(axis, sizes to run at, batches to run)."""
    sizes: list[Size | None] = [_size(size) if size else None]
    if sweep is None:
        return None, sizes, _split(batches)
    axis, equals, values = sweep.partition("=")
    if not equals:
        return axis, sizes, _split(batches)
    if axis == "batch":
        return axis, sizes, _split(values)
    if axis == "size":
        return axis, [_size(v) for v in _split(values)], _split(batches)
    raise UsageError(
        f"--sweep {axis}: only batch and size can be swept in one bundle",
        hint=f"give bundles that differ in {axis} and --sweep {axis}",
    )


def _size(text: str) -> Size:
    height, cross, width = text.partition("x")
    if not cross or not height.isdigit() or not width.isdigit() or 0 in (int(height), int(width)):
        raise UsageError(f"a size is HxW, got {text!r}")
    return int(height), int(width)
