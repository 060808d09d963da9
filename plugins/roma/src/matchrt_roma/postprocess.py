"""RoMa's dense warp to matches: thresholds, mutual check, and three ways to choose. Numpy only.

Normalised coordinates put -1 and 1 at an image's outer edges. Ours are pixels with centres at integers, so
x = (n + 1) / 2 * width - 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from matchrt.errors import UsageError
from matchrt_roma.preprocess import PARITY_SIZE
from matchrt_roma.sampling import balanced_sample, best, thin_by_grid

Array = npt.NDArray[Any]
Size = tuple[int, int]
SAMPLINGS = ("top", "balanced", "grid")


@dataclass(frozen=True)
class MatchSettings:
    """How matches are chosen from the warp.

    `sampling`: `top` (the `top_k` most certain), `balanced` (upstream's density-balanced draw, with `seed`) or `grid`
    (the most certain of every `cell` x `cell` block of warp pixels, then the `top_k`). `confidence`: certainty must
    exceed it. `mutual`: largest forward-backward error in warp pixels (None: no check; upstream's own value is 2).
    `sample_threshold`: certainty above which `balanced` draws evenly. `parity`: coordinates and scores as
    MatchAnything's demo gives them, with its half-pixel bias.
    """

    sampling: str = "top"
    top_k: int = 5000
    confidence: float = 0.0
    mutual: float | None = None
    cell: int = 8
    seed: int = 0
    sample_threshold: float = 0.05
    parity: bool = False

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise UsageError(f"unknown sampling {self.sampling!r}", hint=f"one of: {', '.join(SAMPLINGS)}")
        if self.top_k < 1 or self.cell < 1:
            raise UsageError("top-k and cell must be at least 1")
        if not 0 <= self.confidence < 1:
            raise UsageError(f"confidence {self.confidence} is not in [0, 1)")


@dataclass(frozen=True)
class DenseMatches:
    """Matches and the dense result they were chosen from.

    `keypoints0`, `keypoints1` `(N, 2)` float32 in pixels of the original images, centres at integers; `scores` `(N,)`
    float32, certainties in [0, 1]; `warp` `(D, H, W, 2)` in [-1, 1] and `certainty` `(D, H, W)`, one for every
    direction.
    """

    keypoints0: Array
    keypoints1: Array
    scores: Array
    warp: Array
    certainty: Array


def centres(height: int, width: int) -> Array:
    """Normalised pixel centres, `(height, width, 2)` float32 as (x, y)."""
    ys, xs = (np.linspace(-1 + 1 / n, 1 - 1 / n, n, dtype=np.float32) for n in (height, width))
    return np.stack(np.meshgrid(xs, ys), axis=-1)


def candidates(warp: Array, certainty: Array) -> tuple[Array, Array]:
    """Every pixel of every direction as a match: `(H*D*W, 4)` normalised (x0, y0, x1, y1), and certainties.

    The order is upstream's: row by row, all of direction 0's row, then direction 1's.
    """
    grid = centres(*warp.shape[1:3])
    sides = [np.concatenate((grid, warp[0]), axis=-1)]
    sides += [np.concatenate((back, grid), axis=-1) for back in warp[1:]]
    return np.concatenate(sides, axis=1).reshape(-1, 4), np.concatenate(list(certainty), axis=1).reshape(-1)


def forward_backward_error(warp: Array) -> Array:
    """Distance in warp pixels between each pixel and where both directions take it, `(2, H, W)`.

    As upstream's `conf_from_fb_consistency` measures it (one pixel is 2 / max(H, W)); outside the frame the way back
    is 0.
    """
    height, width = warp.shape[1:3]
    grid = centres(height, width)
    errors = [np.linalg.norm(grid - sample_bilinear(warp[1 - k], warp[k]), axis=-1) for k in (0, 1)]
    scaled: Array = np.stack(errors) * (max(height, width) / 2)
    return scaled


def sample_bilinear(values: Array, points: Array) -> Array:
    """`(H, W, C)` at normalised `points` `(..., 2)`; zeros outside, pixel centres as in `centres`."""
    height, width = values.shape[:2]
    x = (points[..., 0] + 1) * (width / 2) - 0.5
    y = (points[..., 1] + 1) * (height / 2) - 0.5
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    total = np.zeros((*points.shape[:-1], values.shape[-1]), values.dtype)
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = x0 + dx, y0 + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (1 - np.abs(x - column)) * (1 - np.abs(y - row)) * inside
            taken = values[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
            total += taken * weight[..., None].astype(values.dtype)
    return total


def to_pixels(points: Array, size: Size) -> Array:
    """Normalised `(N, 2)` to pixels of an image of `size`, centres at integers."""
    extent = np.array([size[1], size[0]], np.float32)
    return (points.astype(np.float32) + 1) * (extent / 2) - np.float32(0.5)


def to_pixels_as_matchanything(points: Array, size: Size) -> Array:
    """Normalised `(N, 2)` to pixels as MatchAnything's demo maps them, in float32 and in its order of operations.

    It reads RoMa's W/2 * (x + 1), whose centres are at +0.5, as if they were at integers, and adds another half pixel
    of the 640x480 image before scaling: (k + 0.5) * s - 0.5.
    """
    half = np.array([PARITY_SIZE[1] / 2, PARITY_SIZE[0] / 2], np.float32)
    scale = (np.array([size[1], size[0]]) / np.array([PARITY_SIZE[1], PARITY_SIZE[0]])).astype(np.float32)
    placed: Array = (half * (points.astype(np.float32) + 1) + np.float32(0.5)) * scale - np.float32(0.5)
    return placed


def _in_parity_frame(matches: Array) -> Array:
    """MatchAnything's border rule: W/2 * (x + 1) <= W - 1, and so for y, in both 640x480 images."""
    extent = np.array([PARITY_SIZE[1], PARITY_SIZE[0]] * 2, np.float32)
    inside: Array = (extent / 2 * (matches + 1) <= extent - 1).all(axis=1)
    return inside


def postprocess(warp: Array, certainty: Array, sizes: tuple[Size, Size], settings: MatchSettings) -> DenseMatches:
    """Choose matches from `warp` `(D, H, W, 2)` and `certainty` `(D, H, W)`; `sizes` are the original images'.

    Certainty 0 (which the network gives to everything that leaves the other image) is never a match. No match at all
    is an empty result. Raises `UsageError` when `mutual` is asked of a warp in one direction.
    """
    matches, scores = candidates(warp, certainty)
    keep = scores > settings.confidence
    if settings.mutual is not None:
        if len(warp) != 2:
            raise UsageError("the mutual check needs both directions", hint="convert with symmetric=true")
        errors = np.concatenate(list(forward_backward_error(warp)), axis=1).reshape(-1)
        keep &= errors < settings.mutual
    kept = np.flatnonzero(keep)
    chosen = kept[_choose(matches[kept], scores[kept], warp.shape[1:3], settings)]
    if settings.parity:
        chosen = chosen[_in_parity_frame(matches[chosen])]
    place = to_pixels_as_matchanything if settings.parity else to_pixels
    result = scores[chosen]
    if settings.parity:
        result = np.where(result > settings.sample_threshold, np.float32(1), result)
    return DenseMatches(
        place(matches[chosen, :2], sizes[0]),
        place(matches[chosen, 2:], sizes[1]),
        result.astype(np.float32),
        warp,
        certainty,
    )


def _choose(matches: Array, scores: Array, size: Size, settings: MatchSettings) -> Array:
    if settings.sampling == "balanced":
        generator = np.random.default_rng(settings.seed)
        return balanced_sample(matches, scores, settings.top_k, settings.sample_threshold, generator)
    if settings.sampling == "grid":
        cells = (max(1, size[0] // settings.cell), max(1, size[1] // settings.cell))
        survivors = thin_by_grid(matches[:, :2], scores, cells)
        return survivors[best(scores[survivors], settings.top_k)]
    return best(scores, settings.top_k)
