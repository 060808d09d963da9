"""A verification as one HTML file: the verdict, figures, pictures of both ways, histograms, tensors, and how it was made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from matchrt.draw.difference import BOTH, FIRST, SECOND, difference, png
from matchrt.draw.page import histogram, image, machine, page, table, verdict
from matchrt.export.compare import TensorDifference
from matchrt.files.atomic import atomic_write_text
from matchrt.verify.bounds import Bounds, tensor_failure
from matchrt.verify.figures import MatchFigures, Spread
from matchrt.verify.location import Location, Point
from matchrt.verify.run import PairResult, VerifyResult

MOST_PICTURES = 12


def write_report(result: VerifyResult, path: Path) -> None:
    """Write `result` to `path`, whole or not at all."""
    manifest = result.bundle.manifest
    title = f"{manifest.matcher.title} ({manifest.matcher.variant}): {_title(result.engine)} against {_title(result.reference)}"
    worst = sorted(result.pairs, key=_badness, reverse=True)[:MOST_PICTURES]
    shown = [p for p in result.pairs if p in worst]
    left = len(result.pairs) - len(shown)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">matchrt verify, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, {escape(machine())}.</p>',
        _banner(result),
        *(f"<p>{escape(n)}.</p>" for n in result.notes),
        _figures(result),
        _location(result.location, result.passed) if result.location else "",
        *(_pair(p) for p in shown),
        f"<p>{left} more pairs are in the table alone; these are the worst.</p>" if left else "",
        _histograms(result) if len(result.pairs) > 1 else "",
        _tensors(result),
        _points(result.location) if result.location and result.location.points else "",
        _provenance(result),
    ]
    atomic_write_text(path, page(title, body))


def _title(side: Mapping[str, Any]) -> str:
    return f"{side['backend']} {side['precision']}" + (" (emulated)" if side.get("emulated") else "")


def _badness(pair: PairResult) -> float:
    mean = pair.figures.coordinates.mean
    return (1 - pair.figures.same) * 100 + (0.0 if math.isnan(mean) else mean)


def _banner(result: VerifyResult) -> str:
    kind = "good" if result.passed else "bad"
    text = "Passed: every figure is within its bound." if result.passed else "Fell short of the reference:"
    lines = "".join(f"<li>{escape(f)}</li>" for f in result.failures)
    return f'<div class="banner {kind}"><span class="{kind}">{text}</span>{f"<ul>{lines}</ul>" if lines else ""}</div>'


def _figures(result: VerifyResult) -> str:
    header = (
        *("pair", "reference", "engine", "same", "mean px", "median", "95 %", "99 %", "max"),
        *("≤ 0.1 px", "≤ 0.5 px", "≤ 1 px", "score error", "correlation", "corners px"),
    )
    figures = [p.figures for p in result.pairs]
    rows = [_row(f) for f in ([*figures, result.total] if len(figures) > 1 else figures)]
    dense = [[escape(f.pair), *_spread(f.warp), _number(f.certainty_max)] for f in figures if f.warp is not None]
    warp = table(("pair", "mean px", "median", "95 %", "99 %", "max", *header[9:12], "certainty, largest"), dense)
    known = [
        [escape(f.pair), *(_number(v) for v in f.corners_known_px)]
        for f in figures
        if not math.isnan(f.corners_known_px[0])
    ]
    return (
        f"<h2>Matches</h2><div class='scroll'>{table(header, rows)}</div>"
        f"<p>Same: found both ways within {result.bounds.radius:g} px. Coordinates: of the matches that both ways found. "
        f"{_bounds(result.bounds)}</p>"
        + (f"<h2>Dense warp</h2><p>Over the pixels that the reference is certain of.</p>{warp}" if dense else "")
        + (
            f"<p>Corners against the known homography, px:</p>{table(('pair', 'reference', 'engine'), known)}"
            if known
            else ""
        )
    )


def _bounds(b: Bounds) -> str:
    if not b.matches:
        return "They are not judged: the weights are random."
    parts = [f"same at least {b.same:.1%} (or at most {b.spare} apart)", f"mean at most {b.mean_px:g} px"]
    if b.within_1px:
        parts.append(f"{b.within_1px:.1%} within 1 px")
    if b.count < 1:
        parts.append(f"counts within {b.count:.0%}")
    return f"Bounds: {', '.join(parts)}."


def _row(f: MatchFigures) -> list[str]:
    name = f"<b>{escape(f.pair)}</b>" if f.pair == "all" else escape(f.pair)
    return [
        name,
        str(f.reference),
        str(f.other),
        f"{f.same:.2%}",
        *_spread(f.coordinates),
        _number(f.score_mean),
        _number(f.correlation, ".6f"),
        _number(f.corners_px),
    ]


def _spread(s: Spread) -> list[str]:
    return [
        *(_number(v) for v in (s.mean, s.median, s.p95, s.p99, s.max)),
        *(_number(v, ".2%") for v in s.within),
    ]


def _number(value: float, form: str = ".2g") -> str:
    return "–" if math.isnan(value) else format(value, form)


def _pair(p: PairResult) -> str:
    reference, other = p.reference, p.other
    assert p.figures.samples is not None
    assert reference.images is not None
    rows = p.figures.samples.rows
    pixels = (reference.images[0].pixels, reference.images[1].pixels)
    picture = difference(
        pixels, (reference.keypoints0, reference.keypoints1), (other.keypoints0, other.keypoints1), rows
    )
    legend = "".join(
        f'<span class="key" style="background:rgb{colour}"></span>{count} {text}'
        for colour, count, text in (
            (BOTH, len(rows), "both ways"),
            (FIRST, len(reference) - len(rows), "only the reference"),
            (SECOND, len(other) - len(rows), "only the engine"),
        )
    )
    return (
        f"<h2>{escape(p.pair.name)}</h2>{image(png(picture, 'JPEG'), 'jpeg', f'matches of {p.pair.name}, both ways')}"
        f"<p>{legend}</p>{_warp_picture(p)}"
        + histogram(p.figures.samples.pixels, "distance between the same matches", "px")
        + histogram(p.figures.samples.scores, "difference of scores, engine less reference", signed=True)
    )


def _warp_picture(p: PairResult) -> str:
    """Where a dense matcher's warp differs, over image 0."""
    a, b = p.reference.warp, p.other.warp
    if a is None or b is None or a.warp.shape != b.warp.shape or p.reference.images is None:
        return ""
    from matchrt.draw.dense import heat_map

    half = np.array([a.size1[1], a.size1[0]]) / 2
    error = np.linalg.norm((b.warp[0].astype(np.float64) - a.warp[0]) * half, axis=-1)
    high = max(float(np.quantile(error, 0.99)), 1e-6)
    picture = heat_map(p.reference.images[0].pixels, error, high=high, grey=True, legend="warp error, px")
    return image(png(picture, "JPEG"), "jpeg", f"error of the warp of {p.pair.name}")


def _histograms(result: VerifyResult) -> str:
    samples = [p.figures.samples for p in result.pairs if p.figures.samples is not None]
    pixels, scores = (np.concatenate([getattr(s, n) for s in samples]) for n in ("pixels", "scores"))
    return (
        "<h2>All pairs</h2>"
        + histogram(pixels, "distance between the same matches", "px")
        + histogram(scores, "difference of scores, engine less reference", signed=True)
    )


def _tensors(result: VerifyResult) -> str:
    rows = []
    worst: dict[str, tuple[TensorDifference, str]] = {}
    failing: set[str] = set()
    own: dict[str, float] = {}
    for pair in result.pairs:
        for d, rounding in pair.judged():
            key = f"{d.network}.{d.tensor}"
            if tensor_failure(d, result.bounds, rounding) is not None:
                failing.add(key)
            if key not in worst or d.relative > worst[key][0].relative:
                worst[key] = (d, pair.pair.name)
        for d in pair.own:
            own[f"{d.network}.{d.tensor}"] = max(own.get(f"{d.network}.{d.tensor}", 0.0), d.relative)
    for key, (d, name) in worst.items():
        failed = key in failing
        judged = verdict(not failed, "failed" if failed else "passed") if result.bounds.tensors else "not judged"
        rows.append(
            [
                f"<code>{escape(key)}</code>",
                f"{d.relative:.1e}",
                f"{d.max_abs:.2g}",
                f"{d.outliers:.2%}",
                f"{own[key]:.1e}",
                escape(name),
                judged,
            ]
        )
    header = ("tensor", "relative error", "largest", "beyond float32 tolerance", "each its own way", "worst pair", "")
    return (
        "<h2>Tensors</h2><p>What each network returns, given the reference's inputs: root mean square of the difference over that of "
        f"the reference. “Each its own way” lets differences of earlier networks pass on.</p>{table(header, rows)}"
    )


def _location(location: Location, passed: bool) -> str:
    note = " All is within the bounds: softmax, exponentials and solves may amplify rounding." if passed else ""
    nodes = f"<p>Nodes there: <code>{escape(', '.join(location.nodes[-12:]))}</code></p>" if location.nodes else ""
    return f"<h2>Where the difference enters</h2><p>On pair {escape(location.pair)}: {escape(location.sentence)}.{note}</p>{nodes}"


def _points(location: Location) -> str:
    rows = "".join(_point(p, p == location.point) for p in location.points)
    head = ("named point", "tensor", "relative error", "of what it is made from", "largest")
    return (
        f"<h2>Named points inside {escape(location.network)}</h2><p>What modules are given and return, in the order of the graph.</p>"
        f"<table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{rows}</table>"
    )


def _point(p: Point, jump: bool) -> str:
    cells = (
        escape(p.name) or "(output)",
        f"<code>{escape(p.tensor)}</code>",
        f"{p.error:.1e}",
        f"{p.inherited:.1e}",
        f"{p.max_abs:.2g}",
    )
    return f"<tr{' class=jump' if jump else ''}>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>"


def _provenance(result: VerifyResult) -> str:
    manifest = result.bundle.manifest
    weights = ", ".join(f"{s.role}: {s.filename} (sha256 {s.sha256})" for s in manifest.weights.sources)
    if manifest.random_weights:
        weights = f"RANDOM, seed {manifest.weights.random_seed}"
    rows = [
        [
            "bundle",
            f"{escape(result.bundle.path.name)}, <code>bundle.json</code> sha256 <code>{result.bundle.sha256}</code>",
        ],
        ["weights", escape(weights)],
        [
            "settings",
            escape(", ".join(f"{n} {v}" for n, v in {**manifest.settings, **manifest.match_settings}.items())),
        ],
        ["converted", escape(f"{manifest.created} with " + ", ".join(f"{n} {v}" for n, v in manifest.tools.items()))],
        ["reference", _side(result.reference)],
        ["engine", _side(result.engine)],
        ["time", f"{result.seconds:.1f} s"],
    ]
    return f"<h2>How this was made</h2>{table(('', ''), rows)}"


def _side(side: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in side["versions"].items() if n != "backend")
    return escape(f"{_title(side)} on {side['device'].get('name', 'unknown')}; {versions}")
