"""`matchrt doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from matchrt.cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from matchrt.doctor.examine import Report

MARKS = {"ok": "✓ ok", "warn": "! warn", "missing": "- missing", "broken": "✗ broken"}


@click.command("doctor")
@click.option(
    "--for",
    "wanted",
    multiple=True,
    metavar="NAME",
    help="Exit with 4 unless this is met: an extra, a backend (also NAME:build, NAME:run), a provider such as cuda.",
)
@json_option
def command(wanted: tuple[str, ...], as_json: bool) -> int:
    """Look at Python, packages, plugins, GPU, backends, caches and disk, and say what repairs what is not good.

    Libraries are tried in processes of their own: one that crashes is a finding.
    """
    from matchrt.doctor.examine import examine

    report = examine([n.strip() for text in wanted for n in text.split(",") if n.strip()])
    if as_json:
        print_json({**report.to_dict(), "exit_code": 4 if report.unmet else 0})
    else:
        _show(report)
    return 4 if report.unmet else 0


def _show(report: Report) -> None:
    rows: list[tuple[str, ...]] = []
    group = ""
    for f in report.findings:
        value = f.value + (f"\n→ {f.repair}" if f.repair else "")
        rows.append((f.group if f.group != group else "", MARKS[f.state.value], f.name, value))
        group = f.group
    _table(("", "state", "what", "found, and → what repairs it"), rows)
    for need in report.needs:
        click.echo(f"for {need.name}: " + ("✓ met" if need.met else "✗ not met"))
        for line in need.why:
            click.echo(f"  {line}")
        for line in need.repairs:
            click.echo(f"  → {line}")


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table, or bare lines where rich itself is what is broken."""
    try:
        print_table(columns, rows)
    except ImportError:
        for row in rows:
            click.echo("  ".join(row))
