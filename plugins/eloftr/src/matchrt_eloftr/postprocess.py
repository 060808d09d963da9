"""From the network's fixed-size outputs to matches in pixels of the original images. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchrt.errors import UsageError
from matchrt_eloftr.preprocess import Prepared


@dataclass(frozen=True, eq=False)
class PairMatches:
    """Matches of one pair, ordered as upstream orders them, by (cell of image 0, cell of image 1).

    `keypoints0`, `keypoints1` (N, 2) float32 (x, y) in pixels of the original images; `scores` (N,) float32; `cells` (N, 2) int32.
    `candidates` is how many pairs the graph found before it truncated, and `truncated` whether a pair above the threshold
    may be missing: every slot of the graph, or of some row, was still above it while more pairs existed.
    """

    keypoints0: NDArray[np.float32]
    keypoints1: NDArray[np.float32]
    scores: NDArray[np.float32]
    cells: NDArray[np.int32]
    candidates: int
    truncated: bool


def finish_pair(
    outputs: Mapping[str, NDArray[Any]],
    geometry: tuple[Prepared, Prepared],
    threshold: float,
    *,
    pair: int = 0,
    score_floor: float = 0.0,
    per_row: int | None = None,
) -> PairMatches:
    """Matches of batch entry `pair` whose score is above `threshold`; no match is an empty result of the right shapes.

    `score_floor` and `per_row` (None: mutual) are those frozen in the graph. Raises `UsageError` for a threshold that
    the graph cannot honour.
    """
    if threshold < score_floor:
        raise UsageError(
            f"threshold {threshold:g} is below {score_floor:g}, the score floor that this graph was exported with",
            hint=f"choose at least {score_floor:g}, or convert again with a lower score floor",
        )
    scores = np.asarray(outputs["scores"][pair], np.float32)
    candidates = int(np.asarray(outputs["candidates"]).reshape(-1)[pair])
    keep = np.flatnonzero(scores > threshold)
    cells = np.asarray(outputs["cells"][pair], np.int32)[keep]
    slots_full = len(keep) == len(scores)
    row_full = per_row is not None and len(cells) > 0 and bool(np.bincount(cells[:, 0]).max() >= per_row)
    order = np.lexsort((cells[:, 1], cells[:, 0]))
    keep, cells = keep[order], cells[order]
    return PairMatches(
        keypoints0=to_original(outputs["keypoints0"][pair][keep], geometry[0]),
        keypoints1=to_original(outputs["keypoints1"][pair][keep], geometry[1]),
        scores=scores[keep],
        cells=cells,
        candidates=candidates,
        truncated=candidates > int(np.count_nonzero(scores > score_floor)) and (slots_full or row_full),
    )


def to_original(points: NDArray[Any], prepared: Prepared) -> NDArray[np.float32]:
    """Network keypoints (N, 2) (x, y) in pixels of the original image, by the recipe's own arithmetic."""
    scaled = np.asarray(points, np.float64) * prepared.refit
    scale = np.asarray(prepared.scale)
    scaled = (scaled + 0.5) * scale - 0.5 if prepared.half_pixel else scaled * scale
    result: NDArray[np.float32] = scaled.astype(np.float32)
    return result
