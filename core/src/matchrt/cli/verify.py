"""`matchrt verify`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from matchrt.cli.options import (
    SettingsCommand,
    backend_option,
    backend_options,
    checkpoint_option,
    parse_assignments,
    set_option,
)
from matchrt.cli.output import json_option, print_facts, print_json, print_table, progress_bars, warn
from matchrt.errors import EnvironmentLackError, UsageError, VerificationError

if TYPE_CHECKING:
    from matchrt.verify import VerifyRequest, VerifyResult
    from matchrt.verify.figures import MatchFigures, Spread


@click.command("verify", cls=SettingsCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--backend", default="onnxruntime", show_default=True, help="What is verified.")
@click.option("--precision", default="fp32", show_default=True)
@click.option("--provider", help="Execution provider of onnxruntime: cpu, cuda, tensorrt, rtx.")
@click.option(
    "--against",
    default="torch",
    show_default=True,
    metavar="torch|BUNDLE|CHECKPOINT",
    help="The reference: PyTorch with the bundle's checkpoint, another bundle, or PyTorch with this checkpoint.",
)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Lines `A B [h11 … h33]`; default: the shipped pairs.",
)
@click.option("--tolerance", type=click.FloatRange(min=0), metavar="PX", help="Allowed mean error of coordinates.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="OUT.html",
    help="Write a report with pictures.",
)
@click.option(
    "--locate/--no-locate", default=None, help="Say where the difference enters; by default only where it falls short."
)
@click.option("--emulate", is_flag=True, help="Emulate fp16 on this CPU, for a backend that cannot run here.")
@click.option(
    "--interpreter",
    "interpreters",
    multiple=True,
    metavar="BACKEND=PATH",
    help="Run that backend under another Python.",
)
@click.option(
    "--trust", multiple=True, metavar="SHA256", help="Load the engine with this sha256 though another user built it."
)
@click.option("--threads", type=int, default=0, help="Threads of the CPU; 0: all cores.")
@checkpoint_option
@backend_option
@click.option(
    "--reference-option",
    "reference_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the reference's backend.",
)
@set_option
@json_option
def command(report: Path | None, as_json: bool, **chosen: Any) -> int:
    """Compare BUNDLE on a backend with the PyTorch network of its checkpoint, on pairs of images.

    Exit code 3 if it falls short of the matcher's tolerance; then it says where the difference enters.
    """
    try:
        from matchrt.verify import run_verify
    except ModuleNotFoundError as error:
        raise EnvironmentLackError(
            f"verify needs {error.name}, which is not installed", hint="pip install 'matchrt[convert]'"
        ) from None
    from matchrt.plugins import get_plugins

    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"cannot write a report to {report}: the suffix must be .html")
    request = _request(**chosen)
    with progress_bars(quiet=as_json) as progress:
        result = run_verify(request, get_plugins(), progress)
    if report is not None:
        from matchrt.verify.report import write_report

        write_report(result, report)
    if as_json:
        print_json({**result.to_dict(), "report": str(report) if report else None})
        return 0 if result.passed else VerificationError.exit_code
    _show(result, report)
    if not result.passed:
        lines = "\n  ".join(result.failures)
        hint = result.location.sentence if result.location else "add --locate to see where the difference enters"
        raise VerificationError(f"the engine falls short of the reference:\n  {lines}", hint=hint)
    return 0


def _request(
    bundle: Path,
    backend: str,
    precision: str,
    provider: str | None,
    against: str,
    interpreters: tuple[str, ...],
    trust: tuple[str, ...],
    threads: int,
    checkpoints: tuple[str, ...],
    options: tuple[str, ...],
    reference_options: tuple[str, ...],
    assignments: tuple[str, ...],
    tolerance: float | None,
    **rest: Any,
) -> VerifyRequest:
    from matchrt.bundle.manifest import FILE_NAME
    from matchrt.verify import VerifyRequest
    from matchrt.verify.subjects import How, with_interpreter
    from matchrt.workers import Interpreters

    pythons = Interpreters.parse(interpreters)
    engine = How(
        backend=backend,
        precision=precision,
        provider=provider,
        options=backend_options(options, checkpoints if backend == "torch" else ()),
        trust=trust,
        threads=threads,
    )
    place, other = Path(against), None
    if against == "torch":
        reference = How(backend="torch", options=backend_options(reference_options, checkpoints), threads=threads)
    elif place.is_dir() or place.name == FILE_NAME:
        reference, other = How(options=backend_options(reference_options), threads=threads), place
    elif place.is_file() or "=" in against:
        extra = {**backend_options(reference_options, (against, *checkpoints)), "foreign": True}
        reference = How(backend="torch", options=extra, threads=threads)
    else:
        raise UsageError(f"--against {against}: neither `torch`, nor a bundle's folder, nor a checkpoint")
    return VerifyRequest(
        bundle=bundle,
        engine=with_interpreter(engine, pythons),
        reference=with_interpreter(reference, pythons),
        against=other,
        tolerance_px=tolerance,
        settings=parse_assignments(assignments),
        **rest,
    )


def _show(result: VerifyResult, report: Path | None) -> None:
    for note in result.notes:
        warn(note)
    manifest = result.bundle.manifest
    print_facts(
        [
            (
                "bundle",
                f"{result.bundle.path} ({manifest.matcher.id}:{manifest.matcher.variant}, sha256 {result.bundle.sha256[:16]}…)",
            ),
            ("reference", _side(result.reference)),
            ("engine", _side(result.engine)),
        ]
    )
    figures = [p.figures for p in result.pairs]
    rows = [_row(f) for f in ([*figures, result.total] if len(figures) > 1 else figures)]
    print_table(_COLUMNS, rows, "matches (reference, engine); coordinates of the same matches in px")
    print_table(
        ("tensor", "relative error", "largest", "beyond tolerance"),
        _tensor_rows(result),
        "tensors on equal inputs (worst pair)",
    )
    if result.location is not None and result.location.points:
        rows = [(p.name or "(network)", p.tensor, f"{p.error:.1e}", f"{p.inherited:.1e}") for p in _telling(result)]
        print_table(
            ("named point", "tensor", "relative error", "of its inputs"), rows, f"inside {result.location.network}"
        )
    if result.location is not None and result.passed:
        print_facts([("location", f"all is within the bounds; {result.location.sentence}")])
    verdict = "passed" if result.passed else "FELL SHORT"
    print_facts([("verdict", f"{verdict} ({result.seconds:.1f} s)"), *([("report", report)] if report else [])])


def _telling(result: VerifyResult) -> list[Any]:
    """The points around the jump: a few before it, and those after it."""
    assert result.location is not None
    points = list(result.location.points)
    at = next((i for i, p in enumerate(points) if p == result.location.point), 0)
    return points[max(0, at - 4) : at + 8]


def _side(described: Any) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in described["versions"].items() if n not in ("backend", "matchrt"))
    emulated = " (emulated)" if described.get("emulated") else ""
    return f"{described['backend']} {described['precision']}{emulated} on {described['device'].get('name', '?')}: {versions}"


_COLUMNS = (
    *("pair", "matches", "same", "mean", "median", "95 %", "99 %", "max", "≤0.1 px", "≤0.5 px", "≤1 px"),
    *("score error", "correlation", "corners"),
)


def _row(f: MatchFigures) -> tuple[str, ...]:
    corners = _px(f.corners_px)
    if not math.isnan(f.corners_known_px[0]):
        corners += f" (known: {_px(f.corners_known_px[0])}, {_px(f.corners_known_px[1])})"
    spread = _spread(f.coordinates)
    return (
        f.pair,
        f"{f.reference}, {f.other}",
        f"{f.same:.2%}",
        *spread,
        _px(f.score_mean),
        _number(f.correlation, ".6f"),
        corners,
    )


def _spread(s: Spread) -> tuple[str, ...]:
    values = [_px(v) for v in (s.mean, s.median, s.p95, s.p99, s.max)]
    return (*values, *(_number(v, ".2%") for v in s.within))


def _px(value: float) -> str:
    return _number(value, ".2g")


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _tensor_rows(result: VerifyResult) -> list[tuple[str, ...]]:
    worst: dict[str, Any] = {}
    for pair in result.pairs:
        for d in pair.equal:
            key = f"{d.network}.{d.tensor}"
            if key not in worst or d.relative > worst[key].relative:
                worst[key] = d
    return [(k, f"{d.relative:.1e}", f"{d.max_abs:.2g}", f"{d.outliers:.2%}") for k, d in worst.items()]
