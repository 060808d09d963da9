"""The demonstration's report: one HTML file with everything inside, that opens anywhere."""

from __future__ import annotations

import base64
import platform
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from matchrt.demo.run import DemoPair, DemoResult
from matchrt.files.atomic import atomic_write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
       color: #1b1d22; background: #fafafa }
h1 { font-size: 1.5rem; margin-bottom: .2rem }
h2 { font-size: 1.1rem; margin-top: 2.2rem }
p.lead { color: #555; margin-top: 0 }
img { max-width: 100%; border-radius: 6px; display: block }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
th { font-weight: 600; color: #444 }
code, pre { font: 13px/1.45 ui-monospace, monospace }
pre { margin: 0 }
.good { color: #12722f; font-weight: 600 }
.bad { color: #b3261e; font-weight: 600 }
@media (prefers-color-scheme: dark) {
  body { background: #15171b; color: #e4e6ea }
  td, th { border-color: #333 }
  p.lead, th { color: #aab }
  .good { color: #6fd08c }
  .bad { color: #ff8a80 }
}
"""


def write_report(result: DemoResult) -> None:
    """Write `result.report`."""
    manifest = result.converted.manifest
    title = f"matchrt demo: {manifest.matcher.title} ({manifest.matcher.variant})"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">From checkpoint to matches on {escape(_machine())} in {result.seconds:.1f} s, '
        f"with {escape(result.pairs[0].matches.backend)} {escape(result.pairs[0].matches.precision)}. "
        f"Coordinates: {escape(manifest.conventions.coordinates)}.</p>",
        _overview(result.pairs),
        *(_pair(p) for p in result.pairs),
        _conversion(result),
    ]
    body = "\n".join(parts)
    atomic_write_text(
        result.report,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n',
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; cells are HTML already."""
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    lines = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"


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
    kind = "good" if pair.corner_px <= 3 else "bad"
    return f'<span class="{kind}">{pair.corner_px:.2f} px</span>'


def _pair(pair: DemoPair) -> str:
    data = base64.b64encode(Path(pair.picture).read_bytes()).decode("ascii")
    rows = [["found homography", _matrix(pair.fit.matrix)], ["known homography", _matrix(pair.sample.homography)]]
    times = ", ".join(f"{escape(n)} {1000 * s:.0f} ms" for n, s in pair.seconds.items())
    return (
        f"<h2>{escape(pair.sample.name)}</h2>"
        f'<img alt="matches of {escape(pair.sample.name)}" src="data:image/png;base64,{data}">'
        f"{table(('', ''), rows)}<p>{times}</p>"
    )


def _matrix(matrix: np.ndarray | None) -> str:
    if matrix is None:
        return "none"
    return "<pre>" + "\n".join("  ".join(f"{v:>12.6g}" for v in row) for row in matrix) + "</pre>"


def _conversion(result: DemoResult) -> str:
    check = result.converted.check
    tensors = [
        [
            f"<code>{escape(d.network)}.{escape(d.tensor)}</code>",
            f"{d.max_abs:.2e}",
            f"{d.mean_abs:.2e}",
            f"{d.outliers:.2%}",
            '<span class="good">passed</span>' if d.passed else '<span class="bad">failed</span>',
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
