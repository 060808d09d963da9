"""Choosing some of a dense warp's matches. Numpy only; every choice is a function of its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

EXPANSION = 4
BANDWIDTH = 0.1
LONELY = 10.0
CHUNK = 512


def scattered(index: Array) -> Array:
    """A fixed permutation's value of each index: neighbours land far apart (Knuth's multiplicative hash)."""
    return (index.astype(np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)


def best(scores: Array, count: int) -> Array:
    """Indices of the `count` largest, largest first; equal scores are taken from all over the image."""
    index = np.arange(len(scores))
    if len(scores) > count:
        limit = np.partition(scores, len(scores) - count)[len(scores) - count]
        above, tied = np.flatnonzero(scores > limit), np.flatnonzero(scores == limit)
        tied = tied[np.argsort(scattered(tied), kind="stable")][: count - len(above)]
        index = np.concatenate((above, tied))
    return index[np.lexsort((scattered(index), -scores[index]))]


def thin_by_grid(points: Array, scores: Array, cells: tuple[int, int]) -> Array:
    """Indices of the best of each cell; `points` `(N, 2)` normalised (x, y), `cells` (rows, columns). Sorted."""
    rows, columns = cells
    column = np.clip(((points[:, 0] + 1) / 2 * columns).astype(np.int64), 0, columns - 1)
    row = np.clip(((points[:, 1] + 1) / 2 * rows).astype(np.int64), 0, rows - 1)
    cell = row * columns + column
    order = np.lexsort((np.arange(len(scores)), -scores, cell))
    _, first = np.unique(cell[order], return_index=True)
    return np.sort(order[first])


def draw(weights: Array, count: int, generator: np.random.Generator) -> Array:
    """Draw at most `count` indices without replacement, in proportion to `weights`; never one of weight zero.

    Exponential races (Efraimidis and Spirakis, 2006), the distribution of drawing one after the other.
    """
    positive = np.flatnonzero(weights > 0)
    times = generator.standard_exponential(len(positive)) / weights[positive].astype(np.float64)
    order = np.argsort(times, kind="stable")[:count]
    return positive[order]


def density(points: Array, bandwidth: float = BANDWIDTH) -> Array:
    """Sum of exp(-d² / 2σ²) over all points, at each of `(N, D)`; rows are taken in chunks, never N x N at once."""
    points = points.astype(np.float32)
    squares = (points * points).sum(axis=1)
    result = np.empty(len(points), np.float32)
    for start in range(0, len(points), CHUNK):
        block = slice(start, start + CHUNK)
        distance = squares[block, None] + squares[None] - 2 * points[block] @ points.T
        np.maximum(distance, 0, out=distance)
        distance *= -1 / (2 * bandwidth**2)
        result[block] = np.exp(distance, out=distance).sum(axis=1)
    return result


def balanced_sample(
    matches: Array, scores: Array, count: int, threshold: float, generator: np.random.Generator
) -> Array:
    """Upstream's `threshold_balanced`: indices into `matches` `(N, 4)` normalised, `scores` `(N,)`.

    Draw 4 * `count` by certainty, all above `threshold` counting as 1; of these draw `count` by 1 / (density + 1),
    where matches with fewer than about ten neighbours hardly count. Fewer candidates than that are all returned.
    """
    weights = np.where(scores > threshold, 1.0, scores)
    first = draw(weights, EXPANSION * count, generator)
    crowd = density(matches[first])
    chance = np.where(crowd < LONELY, 1e-7, 1.0 / (crowd + 1.0))
    return first[draw(chance, count, generator)]
