"""The two grey conversions in use, each exact to its recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchrt.errors import UsageError
from matchrt.images.memory import empty, temporary


def _check_colour(pixels: NDArray[Any]) -> None:
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise UsageError(
            f"grey conversion takes (H, W) or (H, W, 3) pixels; got shape {pixels.shape}, dtype {pixels.dtype}"
        )


def to_grey_float(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Grey as 0.299 R + 0.587 G + 0.114 B in float32, without rounding (SuperPoint + LightGlue; kornia's weights).

    `pixels` is (H, W, 3) in any range, or (H, W), which is returned as float32 unchanged. Returns (H, W).
    """
    _check_colour(pixels)
    if pixels.ndim == 2:
        return pixels if pixels.dtype == np.float32 else _as_float(pixels, empty(pixels.shape))
    import cv2

    height, width = pixels.shape[:2]
    colour = pixels if pixels.dtype == np.float32 else _as_float(pixels, temporary("colour", pixels.shape))
    grey = empty((height, width))
    return np.asarray(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY, dst=grey), np.float32)


def _as_float(pixels: NDArray[Any], out: NDArray[np.float32]) -> NDArray[np.float32]:
    np.copyto(out, pixels, casting="same_kind")
    return out


def to_grey_pil(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey as Pillow's `convert("L")` computes it, bit for bit (MatchAnything-ELoFTR).

    ITU-R 601-2 luma in 16-bit fixed point: (19595 R + 38470 G + 7471 B + 32768) >> 16.
    `pixels` is uint8 (H, W, 3), or (H, W), which is returned unchanged. Returns uint8 (H, W).
    """
    _check_colour(pixels)
    if pixels.dtype != np.uint8:
        raise UsageError(f"Pillow's grey conversion takes uint8 pixels; got dtype {pixels.dtype}, shape {pixels.shape}")
    if pixels.ndim == 2:
        return pixels
    total = pixels[..., 0] * np.uint32(19595) + pixels[..., 1] * np.uint32(38470) + pixels[..., 2] * np.uint32(7471)
    grey: NDArray[np.uint8] = ((total + np.uint32(32768)) >> np.uint32(16)).astype(np.uint8)
    return grey
