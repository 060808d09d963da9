"""`matchrt match`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from matchrt.cli.options import (
    SettingsCommand,
    backend_option,
    backend_options,
    checkpoint_option,
    config_option,
    explain,
    explain_option,
    file_settings,
    parse_assignments,
    set_option,
)
from matchrt.cli.output import json_option, print_facts, print_json, progress_bars, warn
from matchrt.errors import UsageError

if TYPE_CHECKING:
    from matchrt.geometry.robust import RobustFit
    from matchrt.matches import Matches


@click.command("match", cls=SettingsCommand)
@click.argument("bundle")
@click.argument("image0", type=click.Path(path_type=Path))
@click.argument("image1", type=click.Path(path_type=Path))
@click.option("--threshold", type=float, metavar="T", help="Least score of a match.")
@click.option("--homography", "model", flag_value="homography", help="Estimate the homography from A to B.")
@click.option("--fundamental", "model", flag_value="fundamental", help="Estimate the fundamental matrix.")
@click.option(
    "--inlier-px", type=float, help="Inlier threshold in pixels (3 for a homography, 1 for a fundamental matrix)."
)
@click.option("--draw", type=click.Path(path_type=Path), metavar="OUT.png", help="Write a picture of the matches.")
@click.option("--draw-warp", type=click.Path(path_type=Path), metavar="OUT.png", help="B laid over A (dense matchers).")
@click.option("--draw-certainty", type=click.Path(path_type=Path), metavar="OUT.png", help="Heat map (dense matchers).")
@click.option("--save", type=click.Path(path_type=Path), metavar="OUT", help="Write the matches: .npz, .json, …")
@click.option("--backend", default="onnxruntime", show_default=True)
@click.option("--provider", help="Execution provider of onnxruntime: cpu, cuda, tensorrt, rtx.")
@click.option("--precision", default="fp32", show_default=True)
@click.option(
    "--trust", multiple=True, metavar="SHA256", help="Load the engine with this sha256 though another user built it."
)
@click.option("--threads", type=int, default=0, help="Threads of the CPU provider; 0: all cores.")
@checkpoint_option
@backend_option
@set_option
@config_option
@explain_option
@json_option
def command(
    bundle: str,
    image0: Path,
    image1: Path,
    threshold: float | None,
    model: str | None,
    inlier_px: float | None,
    draw: Path | None,
    draw_warp: Path | None,
    draw_certainty: Path | None,
    save: Path | None,
    backend: str,
    provider: str | None,
    precision: str,
    trust: tuple[str, ...],
    threads: int,
    checkpoints: tuple[str, ...],
    options: tuple[str, ...],
    assignments: tuple[str, ...],
    config: Path | None,
    show_settings: bool,
    as_json: bool,
) -> None:
    """Match images A and B with BUNDLE (a folder, or MATCHER[:VARIANT] whose weights are at hand).

    Every match setting of the matcher is an option too: --top-k 500 is --set top_k=500.
    """
    from matchrt.files.writers import find_writer
    from matchrt.runtime import load

    if save is not None:
        find_writer(save)
    for picture in (draw, draw_warp, draw_certainty):
        _check_draw(picture)
    settings = {**file_settings(config), **parse_assignments(assignments, threshold=threshold)}
    begin = time.perf_counter()
    with progress_bars(quiet=as_json) as progress:
        matcher = load(
            bundle,
            backend=backend,
            precision=precision,
            provider=provider,
            threads=threads,
            trust=trust,
            options=backend_options(options, checkpoints),
            settings=settings,
            progress=progress,
        )
    loaded = time.perf_counter() - begin
    if show_settings:
        explain(matcher.settings)
    matches = matcher(image0, image1)
    fit = _fit(matches, model, inlier_px)
    if draw is not None:
        matches.draw(draw, inliers=fit.inliers if fit else None)
    if draw_warp is not None:
        matches.draw_warp(draw_warp)
    if draw_certainty is not None:
        matches.draw_certainty(draw_certainty)
    if save is not None:
        matches.save(save)
    if matches.random_weights:
        warn("RANDOM WEIGHTS: this bundle is for tests and speed only, its matches mean nothing")
    for note in matches.notes:
        warn(note)
    result = _result(matches, fit, model, loaded)
    written = {"picture": draw, "warp_picture": draw_warp, "certainty_picture": draw_certainty, "saved": save}
    result |= {name: None if path is None else str(path) for name, path in written.items()}
    print_json(result) if as_json else _show(result, image0, image1)


def _check_draw(draw: Path | None) -> None:
    if draw is not None and draw.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"cannot draw to {draw}: the suffix must be .png, .jpg or .webp")


def _fit(matches: Matches, model: str | None, inlier_px: float | None) -> RobustFit | None:
    if model == "homography":
        return matches.homography(inlier_px or 3.0)
    if model == "fundamental":
        return matches.fundamental(inlier_px or 1.0)
    return None


def _result(matches: Matches, fit: RobustFit | None, model: str | None, loaded: float) -> dict[str, Any]:
    result: dict[str, Any] = {
        "matches": len(matches),
        "matcher": matches.matcher,
        "backend": matches.backend,
        "precision": matches.precision,
        "random_weights": matches.random_weights,
        "notes": list(matches.notes),
        "size0": list(matches.size0),
        "size1": list(matches.size1),
        "homography": None,
    }
    if fit is not None and model is not None:
        result[model] = None if fit.matrix is None else fit.matrix.tolist()
        result["inliers"] = int(fit.inliers.sum())
        result["inlier_px"] = fit.threshold_px
    result["seconds"] = {"load": round(loaded, 4), **{n: round(s, 4) for n, s in matches.seconds.items()}}
    return result


def _show(result: dict[str, Any], image0: Path, image1: Path) -> None:
    facts: list[tuple[str, object]] = [
        ("matches", result["matches"]),
        (
            "images",
            f"{image0} {result['size0'][0]}x{result['size0'][1]}, {image1} {result['size1'][0]}x{result['size1'][1]}",
        ),
        ("ran on", f"{result['backend']} {result['precision']} ({result['matcher']})"),
    ]
    for model in ("homography", "fundamental"):
        if "inliers" in result and model in result and (model != "homography" or "fundamental" not in result):
            matrix = result[model]
            rows = "not found" if matrix is None else "  ".join(" ".join(f"{v:.6g}" for v in row) for row in matrix)
            facts += [("inliers", f"{result['inliers']} within {result['inlier_px']:g} px"), (model, rows)]
    facts.append(("seconds", ", ".join(f"{n} {s:.3f}" for n, s in result["seconds"].items())))
    written = ("picture", "warp_picture", "certainty_picture", "saved")
    facts += [(n.replace("_", " "), result[n]) for n in written if result[n]]
    print_facts(facts)
