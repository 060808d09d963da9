"""HTML pages that hold everything inside and open anywhere: the style, tables, pictures and histograms of matchrt's reports."""

from __future__ import annotations

import base64
import platform
from collections.abc import Sequence
from html import escape

import numpy as np

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
figure { display: inline-block; vertical-align: top; margin: .5rem 1.5rem .5rem 0; width: 30rem; max-width: 100% }
figcaption { color: #666; font-size: 13px }
svg { width: 100%; height: auto }
svg rect { fill: #3f7fd0 }
svg line { stroke: #999 }
svg text { font-size: 12px; fill: #666 }
.banner { padding: .6rem 1rem; border-radius: 6px; border-left: 6px solid; background: #fff }
.banner.good { border-color: #12722f }
.banner.bad { border-color: #b3261e }
.banner ul { margin: .3rem 0 0; padding-left: 1.2rem; font-weight: 400 }
.key { display: inline-block; width: 1.6em; height: .35em; vertical-align: middle; margin: 0 .3em 0 1em; border-radius: 2px }
.scroll { overflow-x: auto }
tr.jump td { background: #fdecea; font-weight: 600 }
@media (prefers-color-scheme: dark) {
  body { background: #15171b; color: #e4e6ea }
  td, th { border-color: #333 }
  p.lead, th { color: #aab }
  .banner { background: #1d2026 }
  figcaption, svg text { color: #99a; fill: #99a }
  tr.jump td { background: #4a2320 }
  .good { color: #6fd08c }
  .bad { color: #ff8a80 }
}
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole document; `body` is HTML already."""
    inside = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>\n{inside}\n</body></html>\n'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; cells are HTML already."""
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    lines = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"


def image(content: bytes, kind: str, description: str) -> str:
    """A picture inside the page; `kind` is png or jpeg."""
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(description)}" src="data:image/{kind};base64,{data}">'


def verdict(good: bool, text: str) -> str:
    """`text`, plain, coloured by whether it is good."""
    return f'<span class="{"good" if good else "bad"}">{escape(text)}</span>'


def machine() -> str:
    """System and Python, for the head of a report."""
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"


def matrix_text(matrix: np.ndarray | None) -> str:
    """A matrix in fixed pitch, or "none"."""
    if matrix is None:
        return "none"
    return "<pre>" + "\n".join("  ".join(f"{v:>12.6g}" for v in row) for row in matrix) + "</pre>"


def histogram(values: np.ndarray, title: str, unit: str = "", *, bins: int = 40, signed: bool = False) -> str:
    """An inline SVG of how `values` (N,) are distributed, up to their 99.5 % quantile; what is beyond is in the last bar.

    `signed` makes the axis symmetric about 0. The bars' heights are the square roots of counts, so that single values show.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return f"<figure><figcaption>{escape(title)}: nothing to show</figcaption></figure>"
    top = float(np.quantile(np.abs(finite), 0.995))
    if top == 0.0:
        top = float(np.abs(finite).max())
    if top == 0.0:
        return f"<figure><figcaption>{escape(title)}: all {len(finite)} are exactly 0</figcaption></figure>"
    low = -top if signed else 0.0
    counts, _ = np.histogram(np.clip(finite, low, top), bins=bins, range=(low, top))
    width, height, foot = 460, 150, 22
    tall = np.sqrt(counts) / np.sqrt(counts.max()) * (height - 20)
    step = width / bins
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - t:.1f}" width="{step - 1:.1f}" height="{t:.1f}"><title>{c}</title></rect>'
        for i, (t, c) in enumerate(zip(tall, counts, strict=True))
        if c
    )
    ends = f'<text x="0" y="{height + 16}">{low:.2g}</text>'
    ends += f'<text x="{width}" y="{height + 16}" text-anchor="end">{top:.2g} {escape(unit)}</text>'
    if signed:
        ends += f'<text x="{width / 2}" y="{height + 16}" text-anchor="middle">0</text>'
    return (
        f'<figure><svg viewBox="0 0 {width} {height + foot}" role="img" aria-label="{escape(title)}">'
        f'<line x1="0" y1="{height}" x2="{width}" y2="{height}"/>{bars}{ends}</svg>'
        f"<figcaption>{escape(title)} ({len(finite)} values; heights are square roots of counts)</figcaption></figure>"
    )
