"""`matchrt convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from matchrt.cli.options import config_option, file_settings, parse_assignments, set_option
from matchrt.cli.output import json_option, print_facts, print_json, progress_bars, warn
from matchrt.errors import EnvironmentLackError, UsageError

if TYPE_CHECKING:
    from matchrt.export.convert import ConvertResult


class _Roles(click.Command):
    """Reads `--weights-ROLE FILE`, whatever roles the matcher has, as `--weights ROLE=FILE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rewritten: list[str] = []
        position = 0
        while position < len(args):
            name, equals, value = args[position].partition("=")
            if name.startswith("--weights-") and len(name) > len("--weights-"):
                if not equals:
                    position += 1
                    if position == len(args):
                        raise click.UsageError(f"{name} needs a file", ctx)
                    value = args[position]
                rewritten += ["--role", f"{name.removeprefix('--weights-')}={value}"]
            else:
                rewritten.append(args[position])
            position += 1
        return super().parse_args(ctx, rewritten)


@click.command("convert", cls=_Roles)
@click.argument("matcher", metavar="MATCHER[:VARIANT]")
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE", help="The checkpoint.")
@click.option("--role", "roles", multiple=True, hidden=True)
@click.option("--random-weights", type=int, metavar="SEED", help="Random weights, for tests and speed only.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="BUNDLE", help="Folder to write."
)
@click.option("--size", metavar="HxW", help="Fixed input size; shorthand for --set size=HxW.")
@click.option("--keypoints", type=int, metavar="K", help="Shorthand for --set keypoints=K.")
@click.option("--opset", type=int, default=18, show_default=True, help="ONNX opset, 16 to 22.")
@click.option(
    "--allow-missing", multiple=True, metavar="GLOB", help="Parameters that the file may lack; the bundle records it."
)
@click.option("--replace", is_flag=True, help="Replace the bundle at -o.")
@set_option
@config_option
@json_option
def command(
    matcher: str,
    weights: Path | None,
    roles: tuple[str, ...],
    random_weights: int | None,
    output: Path,
    size: str | None,
    keypoints: int | None,
    opset: int,
    allow_missing: tuple[str, ...],
    replace: bool,
    assignments: tuple[str, ...],
    config: Path | None,
    as_json: bool,
) -> None:
    """Turn a checkpoint into a bundle: ONNX files and a manifest, checked against PyTorch on photographs.

    Files of further roles are given as --weights-ROLE FILE, for example --weights-extractor. A bundle appears whole or not at all.
    """
    matcher_id, _, variant = matcher.partition(":")
    files = {} if weights is None else {"": weights}
    files |= {role: Path(path) for role, _, path in (text.partition("=") for text in roles)}
    if random_weights is not None and files:
        raise UsageError("--weights and --random-weights exclude each other")
    try:
        from matchrt.export.convert import ConvertRequest, run_convert
    except ModuleNotFoundError as error:
        raise EnvironmentLackError(
            f"converting needs {error.name}, which is not installed", hint="pip install 'matchrt[convert]'"
        ) from None
    from matchrt.plugins import get_plugins

    request = ConvertRequest(
        matcher=matcher_id,
        variant=variant or None,
        output=output,
        weights=files,
        random_seed=random_weights,
        settings=parse_assignments(assignments, size=size, keypoints=keypoints),
        settings_file=file_settings(config),
        opset=opset,
        allow_missing=allow_missing,
        replace=replace,
    )
    with progress_bars(quiet=as_json) as progress:
        result = run_convert(request, get_plugins(), progress)
    if as_json:
        print_json(result.to_dict())
    else:
        _show(result)


def _show(result: ConvertResult) -> None:
    counts = ", ".join(f"{v} {k}" for k, v in result.weights.counts().items() if v or k == "loaded")
    if result.manifest.random_weights:
        warn("RANDOM WEIGHTS: this bundle is for tests and speed only, its matches mean nothing")
        counts = f"random, seed {result.manifest.weights.random_seed}"
    worst = max((d.max_abs for d in result.check.tensors), default=0.0)
    pairs = ", ".join(f"{m.other} of {m.reference} ({m.pair})" for m in result.check.matches)
    print_facts(
        [
            ("bundle", result.bundle),
            ("matcher", f"{result.manifest.matcher.id}:{result.manifest.matcher.variant}"),
            ("weights", counts),
            ("check", f"passed: ONNX against PyTorch, largest difference {worst:.2g}; matches found again: {pairs}"),
            ("seconds", ", ".join(f"{n} {s:.1f}" for n, s in result.seconds.items())),
        ]
    )
