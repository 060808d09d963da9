"""`matchrt demo`."""

from __future__ import annotations

from pathlib import Path

import click

from matchrt.cli.output import json_option, print_json, print_table, progress_bars
from matchrt.errors import EnvironmentLackError


@click.command("demo")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("matchrt-demo"),
    show_default=True,
    metavar="DIR",
    help="Folder for the bundle, the pictures and the report.",
)
@click.option("--matcher", metavar="MATCHER[:VARIANT]", help="Another matcher whose weights are at hand.")
@json_option
def command(output: Path, matcher: str | None, as_json: bool) -> None:
    """Convert a shipped checkpoint, match shipped photographs with it, and write a report. Needs no network."""
    try:
        from matchrt.demo.run import run_demo
    except ModuleNotFoundError as error:
        raise EnvironmentLackError(
            f"the demo converts a checkpoint, which needs {error.name}", hint="pip install 'matchrt[convert]'"
        ) from None
    from matchrt.plugins import get_plugins

    with progress_bars(quiet=as_json) as progress:
        result = run_demo(output, matcher, get_plugins(), progress)
    if as_json:
        print_json(result.to_dict())
        return
    rows = []
    for pair in result.pairs:
        d = pair.to_dict()
        corner = "-" if pair.corner_px is None else f"{pair.corner_px:.2f} px"
        rows.append(
            (d["pair"], d["matches"], d["inliers"], corner, f"{1000 * sum(pair.seconds.values()):.0f} ms", pair.picture)
        )
    print_table(("pair", "matches", "inliers", "corner error", "time", "picture"), rows)
    click.echo(f"report  {result.report}  ({result.seconds:.1f} s in all)")
