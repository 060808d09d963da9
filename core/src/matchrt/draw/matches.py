"""Two images side by side, joined by their matches."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchrt.draw import canvas
from matchrt.errors import UsageError

UInt8Array = NDArray[np.uint8]
OUTLIER = (226, 72, 61)
_MIN_WIDTH = 320  # for the caption
_SHIFT = 4  # OpenCV draws at sixteenths of a pixel


def side_by_side(
    image0: NDArray[Any],
    image1: NDArray[Any],
    keypoints0: NDArray[Any],
    keypoints1: NDArray[Any],
    scores: NDArray[Any],
    inliers: NDArray[Any] | None = None,
    *,
    caption: str | None = None,
    max_lines: int = 1000,
    path: str | os.PathLike[str] | None = None,
) -> UInt8Array:
    """Draw matches as lines between two images at equal height; returns RGB uint8 (H, W, 3), 320 to 2400 wide.

    `image0`, `image1` are uint8 (H, W) or (H, W, 3) RGB, of any sizes; neither is stretched. `keypoints0`,
    `keypoints1` are (N, 2) as (x, y) in their pixels and `scores` (N,) gives the colour, 0 to 1 (or to the largest
    score above 1). With `inliers`, bool (N,), inliers are drawn in colour over thin red outliers. Of more than
    `max_lines` matches the best are drawn, inliers and outliers in their proportion, and the picture says how many.
    `caption` is written below, by default the counts. `path` also writes the picture (.png, .jpg or .webp).
    """
    points = _checked(keypoints0, keypoints1, scores, inliers)
    board, placed = beside(image0, image1, points)
    width = board.shape[1]

    drawn = _chosen(np.asarray(scores, np.float64), inliers, max_lines)
    _draw_lines(board, placed[0], placed[1], np.asarray(scores), inliers, drawn)
    text = caption if caption is not None else _counts(len(scores), inliers)
    note = f"{len(drawn)} of {len(scores)} drawn" if len(drawn) < len(scores) else ""
    strip = _strip(width, text, note, top=_top_score(np.asarray(scores)), outliers=inliers is not None)
    picture = np.vstack([board, strip])
    if path is not None:
        canvas.save_picture(picture, path)
    return picture


def beside(
    image0: NDArray[Any], image1: NDArray[Any], points: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> tuple[UInt8Array, list[NDArray[np.float64]]]:
    """Both images at equal height on one board, RGB uint8 (H, W, 3), and the points (N, 2) of each as places on the board."""
    left, right = canvas.as_rgb(np.asarray(image0)), canvas.as_rgb(np.asarray(image1))
    height, gap = _common_height(left.shape[:2], right.shape[:2])
    board = np.full((height, 1, 3), canvas.BACKGROUND, np.uint8)[:, :0]
    placed = []
    widths = [max(1, round(p.shape[1] * height / p.shape[0])) for p in (left, right)]
    shrink = min(1.0, (canvas.MAX_WIDTH - gap) / sum(widths))  # below 1 only where a height of 1 is still too tall
    for pixels, keypoints, natural in ((left, points[0], widths[0]), (right, points[1], widths[1])):
        width = max(1, int(natural * shrink))
        scale = np.array([width / pixels.shape[1], height / pixels.shape[0]])
        placed.append((keypoints + 0.5) * scale - 0.5 + [board.shape[1], 0])
        between = np.full((height, gap, 3), canvas.BACKGROUND, np.uint8)
        board = np.hstack([board, canvas.resize(pixels, (height, width)), between])
    board = np.ascontiguousarray(board[:, :-gap])
    width = max(board.shape[1], _MIN_WIDTH)
    return np.pad(board, ((0, 0), (0, width - board.shape[1]), (0, 0))), placed


def _counts(count: int, inliers: NDArray[Any] | None) -> str:
    matches = f"{count} match{'' if count == 1 else 'es'}" if count else "no matches"
    return matches if inliers is None or not count else f"{matches} · {int(np.count_nonzero(inliers))} inliers"


def _common_height(size0: tuple[int, ...], size1: tuple[int, ...]) -> tuple[int, int]:
    """The height of both images and the gap between them: the taller one's, held between tiny and 2400 pixels wide."""
    aspect = size0[1] / size0[0] + size1[1] / size1[0]
    height = float(max(size0[0], size1[0]))
    height = max(height, min(480.0, 960 / aspect))  # tiny images are enlarged until their lines can be told apart
    gap = max(4, round(min(height, canvas.MAX_WIDTH / aspect) / 90))
    height = min(height, (canvas.MAX_WIDTH - gap - 1) / aspect, 2 * canvas.MAX_WIDTH)
    return max(1, int(height)), gap


def _chosen(scores: NDArray[np.float64], inliers: NDArray[Any] | None, max_lines: int) -> NDArray[np.intp]:
    """Which matches to draw, in drawing order: outliers first, the best last and so on top.

    Where there are too many, the best of either kind, in the proportion that they have among all.
    """
    ranks = np.argsort(np.nan_to_num(scores, nan=-np.inf), kind="stable")
    good = np.ones(len(scores), bool) if inliers is None else np.asarray(inliers, bool)
    kinds = ranks[~good[ranks]], ranks[good[ranks]]
    limit = min(max(max_lines, 0), len(scores))
    inlier_share = round(limit * len(kinds[1]) / max(len(scores), 1))
    return np.concatenate([k[len(k) - n :] for k, n in zip(kinds, (limit - inlier_share, inlier_share), strict=True)])


def _top_score(scores: NDArray[Any]) -> float:
    finite = scores[np.isfinite(scores)]
    return max(1.0, float(finite.max())) if finite.size else 1.0


def _draw_lines(
    board: UInt8Array,
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    scores: NDArray[Any],
    inliers: NDArray[Any] | None,
    drawn: NDArray[np.intp],
) -> None:
    """Lines in layers, each blended as a whole so that dense bundles do not hide the photographs."""
    import cv2

    finite: NDArray[np.bool_] = np.asarray(np.isfinite(np.hstack([start, end])).all(axis=1))
    drawn = drawn[finite[drawn]]
    if not len(drawn):
        return
    high = _top_score(scores)
    colour = canvas.colours(scores, high=high)
    good = np.ones(len(scores), bool) if inliers is None else np.asarray(inliers, bool)
    unit = max(1.0, board.shape[1] / 1600)
    bold = float(np.clip((120 / len(drawn)) ** 0.35, 0.35, 1.0))  # many lines: thin and faint, the photographs stay
    layers = [
        (drawn[~good[drawn]], 0.4 * bold + 0.1, max(1, round(unit))),
        (drawn[good[drawn]], 0.9 * bold, max(1, round(1.6 * bold * unit))),
    ]
    limit = 4.0 * max(board.shape[:2])
    inside = [np.clip(np.nan_to_num(p), -limit, limit) for p in (start, end)]
    ends = [np.round(p * 2**_SHIFT).astype(int).tolist() for p in inside]
    radius = (1.2 + 1.8 * bold) * unit * 2**_SHIFT
    for rows, opacity, thickness in layers:
        rgb = {row: tuple(int(v) for v in colour[row]) if good[row] else OUTLIER for row in rows.tolist()}
        layer = board.copy()
        for row, line_colour in rgb.items():
            cv2.line(layer, ends[0][row], ends[1][row], line_colour, thickness, cv2.LINE_AA, _SHIFT)
        board[:] = cv2.addWeighted(layer, opacity, board, 1 - opacity, 0)
        for row, dot_colour in rgb.items():
            for centre in (ends[0][row], ends[1][row]):
                cv2.circle(board, centre, round(radius * 1.45), canvas.BACKGROUND, cv2.FILLED, cv2.LINE_AA, _SHIFT)
                cv2.circle(board, centre, round(radius), dot_colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _strip(width: int, text: str, note: str, *, top: float, outliers: bool) -> UInt8Array:
    """The caption, and on the right the meaning of the colours where there is room."""
    from PIL import Image as PILImage
    from PIL import ImageDraw

    size = float(np.clip(width / 62, 11, 30))
    height = int(size * 2.4)
    strip = PILImage.new("RGB", (width, height), canvas.BACKGROUND)
    pen = ImageDraw.Draw(strip)
    margin, middle = size * 0.8, height / 2
    small = canvas.font(size * 0.78)
    right = width - margin
    top_text = f"{top:.3g}"
    bar = size * 6
    outlier_text = "outlier"
    needed = bar + small.getlength("score 0 " + top_text) + size * 2
    needed += (small.getlength(outlier_text) + size * 2.6) if outliers else 0
    if width >= 640 and needed + canvas.font(size).getlength(text) * 0.7 < width:
        right = _legend(strip, pen, right, middle, size, small, top_text, outlier_text if outliers else "")
    if note and width >= 480:
        pen.text((right, middle), note, fill=canvas.TEXT_QUIET, font=small, anchor="rm")
        right -= small.getlength(note) + size
    elif note:
        text = f"{text} ({note})"
    text, chosen = canvas.fitting(text, right - margin, size)
    pen.text((margin, middle), text, fill=canvas.TEXT, font=chosen, anchor="lm")
    return np.array(strip)


def _legend(
    strip: Any, pen: Any, right: float, middle: float, size: float, small: Any, top: str, outlier: str
) -> float:
    """Draw the legend leftwards from `right`; returns where it begins."""
    from PIL import Image as PILImage

    if outlier:
        pen.text((right, middle), outlier, fill=canvas.TEXT_QUIET, font=small, anchor="rm")
        right -= small.getlength(outlier) + size * 0.4
        pen.line((right - size * 1.2, middle, right, middle), fill=OUTLIER, width=max(2, round(size / 8)))
        right -= size * 2.2
    pen.text((right, middle), top, fill=canvas.TEXT_QUIET, font=small, anchor="rm")
    right -= small.getlength(top) + size * 0.4
    length, thickness = int(size * 6), max(4, int(size * 0.6))
    ramp = np.repeat(canvas.colours(np.linspace(0, 1, length))[None], thickness, axis=0)
    strip.paste(PILImage.fromarray(ramp), (int(right - length), int(middle - thickness / 2)))
    right -= length + size * 0.4
    pen.text((right, middle), "score 0", fill=canvas.TEXT_QUIET, font=small, anchor="rm")
    return float(right - small.getlength("score 0") - size)


def _checked(
    keypoints0: NDArray[Any], keypoints1: NDArray[Any], scores: NDArray[Any], inliers: NDArray[Any] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    shapes = np.shape(keypoints0), np.shape(keypoints1), np.shape(scores)
    count = len(scores)
    if shapes != ((count, 2), (count, 2), (count,)) or (inliers is not None and np.shape(inliers) != (count,)):
        raise UsageError(
            f"drawing takes keypoints (N, 2), (N, 2), scores (N,) and inliers (N,); got shapes {shapes[0]}, {shapes[1]}, "
            f"{shapes[2]} and {None if inliers is None else np.shape(inliers)}"
        )
    return np.asarray(keypoints0, np.float64), np.asarray(keypoints1, np.float64)
