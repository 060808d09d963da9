"""The demonstration's report: one HTML file with everything inside, that opens anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from matchrt.demo.run import DemoPair, DemoResult
from matchrt.draw.page import image, machine, matrix_text, page, table, verdict
from matchrt.files.atomic import atomic_write_text


def write_report(result: DemoResult) -> None:
    """Write `result.report`."""
    manifest = result.converted.manifest
    title = f"matchrt demo: {manifest.matcher.title} ({manifest.matcher.variant})"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">From checkpoint to matches on {escape(machine())} in {result.seconds:.1f} s, '
        f"with {escape(result.pairs[0].matches.backend)} {escape(result.pairs[0].matches.precision)}. "
        f"Coordinates: {escape(manifest.conventions.coordinates)}.</p>",
        _overview(result.pairs),
        *(_pair(p) for p in result.pairs),
        _conversion(result),
    ]
    atomic_write_text(result.report, page(title, parts))


def _overview(pairs: Sequence[DemoPair]) -> str:
    rows = [
        [
            escape(p.sample.name),
            str(len(p.matches)),
            str(int(np.count_nonzero(p.fit.inliers))),
            _corner(p),
            f"{1000 * sum(p.seconds.values()):.0f} ms",
        ]
        for p in pairs
    ]
    return table(("pair", "matches", "inliers", "corner error", "time"), rows)


def _corner(pair: DemoPair) -> str:
    if pair.corner_px is None:
        return "not known"
    return verdict(pair.corner_px <= 3, f"{pair.corner_px:.2f} px")


def _pair(pair: DemoPair) -> str:
    picture = image(Path(pair.picture).read_bytes(), "png", f"matches of {pair.sample.name}")
    rows = [
        ["found homography", matrix_text(pair.fit.matrix)],
        ["known homography", matrix_text(pair.sample.homography)],
    ]
    times = ", ".join(f"{escape(n)} {1000 * s:.0f} ms" for n, s in pair.seconds.items())
    return f"<h2>{escape(pair.sample.name)}</h2>{picture}{table(('', ''), rows)}<p>{times}</p>"


def _conversion(result: DemoResult) -> str:
    check = result.converted.check
    tensors = [
        [
            f"<code>{escape(d.network)}.{escape(d.tensor)}</code>",
            f"{d.max_abs:.2e}",
            f"{d.mean_abs:.2e}",
            f"{d.outliers:.2%}",
            verdict(d.passed, "passed" if d.passed else "failed"),
        ]
        for d in check.worst.values()
    ]
    matches = [
        [escape(m.pair), str(m.reference), str(m.other), f"{m.shared:.2%}", f"{m.max_px:.2g} px", f"{m.max_score:.2g}"]
        for m in check.matches
    ]
    counts = ", ".join(f"{v} {k}" for k, v in result.converted.weights.counts().items())
    sources = ", ".join(
        f"{escape(s.filename)} (sha256 {s.sha256[:16]}…)" for s in result.converted.manifest.weights.sources
    )
    seconds = ", ".join(f"{escape(n)} {s:.1f} s" for n, s in result.converted.seconds.items())
    return (
        "<h2>Conversion</h2>"
        f"<p>Weights: {sources}. Every tensor is accounted for: {escape(counts)}.</p>"
        "<p>The ONNX in onnxruntime against the PyTorch network, on the same pairs (the largest of each):</p>"
        + table(("tensor", "largest difference", "mean", "beyond tolerance", ""), tensors)
        + table(("pair", "PyTorch", "ONNX", "shared", "largest shift", "largest score difference"), matches)
        + f"<p>Time: {seconds}.</p>"
    )
