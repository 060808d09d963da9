"""Two results for one pair of images, in figures that a person can judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from matchrt.export.compare import pair_points
from matchrt.geometry.robust import corner_error
from matchrt.matches import DenseWarp, Matches

PAIRING_PX = 3.0
"""Matches of both ways at most this far apart, and each other's nearest, are taken for the same match."""
WITHIN_PX = (0.1, 0.5, 1.0)
PERCENTILES = (95.0, 99.0)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A distribution of distances in pixels; `within` are the shares at most 0.1, 0.5 and 1 px. NaN where there is nothing to measure."""

    count: int
    mean: float
    median: float
    p95: float
    p99: float
    max: float
    within: tuple[float, float, float]

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        """Of `values` (N,)."""
        if not len(values):
            return cls(count=0, mean=math.nan, median=math.nan, p95=math.nan, p99=math.nan, max=math.nan, within=_NONE)
        p95, p99 = np.percentile(values, PERCENTILES)
        low, middle, high = (float((values <= px).mean()) for px in WITHIN_PX)
        return cls(
            count=len(values),
            mean=float(values.mean()),
            median=float(np.median(values)),
            p95=float(p95),
            p99=float(p99),
            max=float(values.max()),
            within=(low, middle, high),
        )


_NONE = (math.nan, math.nan, math.nan)


@dataclass(frozen=True, kw_only=True)
class MatchFigures:
    """How the matches of one pair differ between the reference and the other way.

    `same` is the share of the longer list that both ways found within `radius` pixels (1 where both are empty). `coordinates` is over
    the matches taken for the same (see `PAIRING_PX`), the larger of both images' distances each. `correlation` is Pearson's, of the
    scores of those; NaN with fewer than 3 or without variance. `corners_px`: the mean distance of image 0's corners under the two
    homographies estimated; `corners_known_px`: each against the known homography, where the pair has one. `warp` is over all pixels
    whose certainty is above 0.5 in the reference (dense matchers), `certainty_max` the largest difference of certainty.
    """

    pair: str
    reference: int
    other: int
    same: float
    radius: float
    coordinates: Spread
    score_mean: float
    score_max: float
    correlation: float
    corners_px: float = math.nan
    corners_known_px: tuple[float, float] = (math.nan, math.nan)
    warp: Spread | None = None
    certainty_max: float = math.nan
    samples: Samples | None = field(default=None, repr=False, compare=False)

    @property
    def unshared(self) -> int:
        """How many matches of the longer list have no partner within `radius`."""
        return round(max(self.reference, self.other) * (1 - self.same))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values; what could not be measured is None."""
        plain = asdict(replace(self, samples=None))
        plain.pop("samples")
        cleaned: dict[str, Any] = finite(plain)
        return cleaned


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What histograms and pictures need. `rows`: (K, 2) rows of the same matches both ways; `pixels`, `scores`: (K,) differences;
    `both_scores`: (K, 2), the reference's and the other's."""

    rows: np.ndarray
    pixels: np.ndarray
    scores: np.ndarray
    both_scores: np.ndarray


def finite(value: Any) -> Any:
    """`value` with None in place of every number that JSON has no word for."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def match_figures(
    pair: str, reference: Matches, other: Matches, radius: float, known: np.ndarray | None = None
) -> MatchFigures:
    """Compare two results for one pair; `known` is its homography (3, 3) from image 0 to image 1."""
    rows, pixels = same_matches(reference, other)
    total = max(len(reference), len(other))
    both = np.stack([reference.scores[rows[:, 0]], other.scores[rows[:, 1]]], axis=1).astype(np.float64)
    scores = both[:, 1] - both[:, 0]
    warp, certainty = _warps(reference.warp, other.warp)
    corners, against_known = _corners(reference, other, known)
    return MatchFigures(
        pair=pair,
        reference=len(reference),
        other=len(other),
        same=float((pixels <= radius).sum()) / total if total else 1.0,
        radius=radius,
        coordinates=Spread.of(pixels),
        score_mean=float(np.abs(scores).mean()) if len(scores) else math.nan,
        score_max=float(np.abs(scores).max()) if len(scores) else math.nan,
        correlation=pearson(both[:, 0], both[:, 1]),
        corners_px=corners,
        corners_known_px=against_known,
        warp=warp,
        certainty_max=certainty,
        samples=Samples(rows=rows, pixels=pixels, scores=scores, both_scores=both),
    )


def total_figures(figures: Sequence[MatchFigures], radius: float) -> MatchFigures:
    """All pairs as one. Homographies are of single pairs, so their errors are the largest of any."""
    samples = [f.samples for f in figures if f.samples is not None]
    pixels = np.concatenate([s.pixels for s in samples]) if samples else np.zeros(0)
    scores = np.concatenate([s.scores for s in samples]) if samples else np.zeros(0)
    both = np.concatenate([s.both_scores for s in samples]) if samples else np.zeros((0, 2))
    longer = sum(max(f.reference, f.other) for f in figures)
    warps = [f.warp for f in figures if f.warp is not None]
    return MatchFigures(
        pair="all",
        reference=sum(f.reference for f in figures),
        other=sum(f.other for f in figures),
        same=float((pixels <= radius).sum()) / longer if longer else 1.0,
        radius=radius,
        coordinates=Spread.of(pixels),
        score_mean=float(np.abs(scores).mean()) if len(scores) else math.nan,
        score_max=float(np.abs(scores).max()) if len(scores) else math.nan,
        correlation=pearson(both[:, 0], both[:, 1]),
        corners_px=_largest([f.corners_px for f in figures]),
        corners_known_px=(
            _largest([f.corners_known_px[0] for f in figures]),
            _largest([f.corners_known_px[1] for f in figures]),
        ),
        warp=max(warps, key=lambda w: w.mean) if warps else None,
        certainty_max=_largest([f.certainty_max for f in figures]),
    )


def _largest(values: Sequence[float]) -> float:
    return max((v for v in values if not math.isnan(v)), default=math.nan)


def same_matches(reference: Matches, other: Matches) -> tuple[np.ndarray, np.ndarray]:
    """Rows (K, 2) of the matches that are each other's nearest within `PAIRING_PX`, and their distances (K,) in pixels."""
    a = np.concatenate([reference.keypoints0, reference.keypoints1], axis=1).astype(np.float64)
    b = np.concatenate([other.keypoints0, other.keypoints1], axis=1).astype(np.float64)
    p, q = pair_points(a, b, PAIRING_PX)
    gap = a[p] - b[q]
    pixels = np.maximum(np.hypot(gap[:, 0], gap[:, 1]), np.hypot(gap[:, 2], gap[:, 3])) if len(p) else np.zeros(0)
    return np.stack([p, q], axis=1), pixels


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two lists of equal length; NaN with fewer than 3 values or without variance."""
    if len(a) < 3:
        return math.nan
    x, y = a.astype(np.float64) - a.mean(dtype=np.float64), b.astype(np.float64) - b.mean(dtype=np.float64)
    scale = math.sqrt(float((x * x).sum()) * float((y * y).sum()))
    return float((x * y).sum()) / scale if scale > 0 else math.nan


def _corners(reference: Matches, other: Matches, known: np.ndarray | None) -> tuple[float, tuple[float, float]]:
    matrices = [m.homography().matrix if len(m) >= 4 else None for m in (reference, other)]
    a, b = matrices
    between = corner_error(b, a, reference.size0) if a is not None and b is not None else math.nan
    if known is None:
        return between, (math.nan, math.nan)
    first, second = (math.nan if m is None else corner_error(m, known, reference.size0) for m in matrices)
    return between, (first, second)


def _warps(reference: DenseWarp | None, other: DenseWarp | None) -> tuple[Spread | None, float]:
    if reference is None or other is None or reference.warp.shape != other.warp.shape:
        return None, math.nan
    distances = []
    for direction in range(len(reference.warp)):
        size = reference.size1 if direction == 0 else reference.size0
        half = np.array([size[1], size[0]], np.float64) / 2  # a warp's unit is half the image
        gap = (other.warp[direction].astype(np.float64) - reference.warp[direction]) * half
        sure = reference.certainty[direction] > 0.5
        distances.append(np.hypot(gap[..., 0], gap[..., 1])[sure])
    return Spread.of(np.concatenate(distances)), float(np.abs(other.certainty - reference.certainty).max())
