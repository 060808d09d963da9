"""The matches of two runs of one pair in one picture: what both found, and what only one did."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchrt.draw import canvas
from matchrt.draw.matches import beside

UInt8Array = NDArray[np.uint8]
BOTH, FIRST, SECOND = (92, 196, 141), (255, 152, 56), (92, 160, 255)
"""RGB of matches found both ways, only by the reference, only by the other."""
MOST = 400
_SHIFT = 4  # OpenCV draws at sixteenths of a pixel


def difference(
    images: tuple[NDArray[Any], NDArray[Any]],
    reference: tuple[NDArray[Any], NDArray[Any]],
    other: tuple[NDArray[Any], NDArray[Any]],
    rows: NDArray[Any],
) -> UInt8Array:
    """RGB uint8 (H, W, 3) of two images side by side with the matches of both runs.

    `reference` and `other` are the keypoints (N, 2) of both images in pixels; `rows` (K, 2) are rows of the same match in each. Of the
    matches found both ways at most `MOST` are drawn, evenly chosen; those that only one run found are all drawn, on top.
    """
    points = (np.concatenate([reference[0], other[0]]), np.concatenate([reference[1], other[1]]))
    board, (start, end) = beside(*images, (points[0].astype(np.float64), points[1].astype(np.float64)))
    count = len(reference[0])
    same = rows[:, 0][:: max(1, -(-len(rows) // MOST))]
    first = np.setdiff1d(np.arange(count), rows[:, 0])
    second = np.setdiff1d(np.arange(len(other[0])), rows[:, 1]) + count
    unit = max(1.0, board.shape[1] / 1600)
    for chosen, colour, opacity, thickness in (
        (same, BOTH, 0.55, 1.0),
        (first, FIRST, 0.9, 1.8),
        (second, SECOND, 0.9, 1.8),
    ):
        _lines(board, start[chosen], end[chosen], colour, opacity, max(1, round(thickness * unit)))
    return board


def _lines(
    board: UInt8Array,
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    colour: tuple[int, int, int],
    opacity: float,
    thickness: int,
) -> None:
    import cv2

    if not len(start):
        return
    limit = 4.0 * max(board.shape[:2])
    ends = [np.round(np.clip(np.nan_to_num(p), -limit, limit) * 2**_SHIFT).astype(int).tolist() for p in (start, end)]
    layer = board.copy()
    for a, b in zip(*ends, strict=True):
        cv2.line(layer, a, b, colour, thickness, cv2.LINE_AA, _SHIFT)
    board[:] = cv2.addWeighted(layer, opacity, board, 1 - opacity, 0)
    for point in (*ends[0], *ends[1]):
        cv2.circle(board, point, round((1.2 + 0.6 * thickness) * 2**_SHIFT), canvas.BACKGROUND, -1, cv2.LINE_AA, _SHIFT)
        cv2.circle(board, point, round((0.6 + 0.6 * thickness) * 2**_SHIFT), colour, -1, cv2.LINE_AA, _SHIFT)


def png(picture: UInt8Array, suffix: str = "PNG") -> bytes:
    """The picture as a file's content; "JPEG" is smaller for photographs."""
    import io

    from PIL import Image as PILImage

    buffer = io.BytesIO()
    options = {"quality": 85} if suffix == "JPEG" else {}
    PILImage.fromarray(picture).save(buffer, suffix, **options)
    return buffer.getvalue()
