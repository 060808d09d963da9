"""Pictures for dense matchers: a map over an image, and one image warped onto the other."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchrt.draw import canvas
from matchrt.errors import UsageError

UInt8Array = NDArray[np.uint8]


def heat_map(
    image: NDArray[Any],
    values: NDArray[Any],
    *,
    low: float = 0.0,
    high: float = 1.0,
    opacity: float = 0.6,
    grey: bool = False,
    legend: str = "",
    path: str | os.PathLike[str] | None = None,
) -> UInt8Array:
    """Lay a map such as the certainty over an image; returns RGB uint8 (H, W, 3), at most 2400 wide.

    `image` is uint8 (H, W) or (H, W, 3); `values` is float (h, w) of any size over the same area, coloured from `low` to
    `high` by viridis. Values that are not finite leave the image as it is. `grey` takes the image's own colours away, so that all
    colour is the map's; `legend` names the map beside a scale in the lower left corner.
    """
    pixels = _readable(canvas.as_rgb(np.asarray(image)))
    if grey:
        luma = np.round(pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
        pixels = np.repeat(luma[..., None], 3, axis=2)
    values = np.asarray(values, np.float32)
    if values.ndim != 2 or values.size == 0:
        raise UsageError(f"a heat map is (h, w); got shape {values.shape}")
    size = pixels.shape[0], pixels.shape[1]
    known = canvas.resize(np.isfinite(values).astype(np.float32), size, smooth=True)
    level = canvas.resize(np.nan_to_num(values, nan=low, posinf=high, neginf=low), size, smooth=True)
    colour = canvas.colours(level.ravel(), low=low, high=high).reshape(pixels.shape)
    blended = _blend(pixels, colour, opacity * known)
    return _finished(_with_legend(blended, legend, low, high) if legend else blended, path)


def _with_legend(picture: UInt8Array, legend: str, low: float, high: float) -> UInt8Array:
    """A strip of the map's colours from `low` to `high`, with both numbers and the map's name, on a dark ground."""
    from PIL import Image, ImageDraw

    height, width = picture.shape[:2]
    size = float(np.clip(min(height, width) / 32, 10, 28))
    text, font = canvas.fitting(f"{low:g} {legend} {high:g}", width - 2 * size, size)
    length, thick, margin = round(font.getlength(text)), round(size / 2), round(size / 2)
    top = height - round(1.3 * size) - thick - 2 * margin
    if not text or top < 0:
        return picture
    picture = picture.copy()
    picture[top:, : length + 2 * margin] //= 4
    strip = canvas.colours(np.linspace(low, high, length), low=low, high=high)
    picture[top + margin : top + margin + thick, margin : margin + length] = strip
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((margin, top + margin + thick), text, (255, 255, 255), font)
    return np.asarray(image)


def warp_overlay(
    image0: NDArray[Any],
    image1: NDArray[Any],
    warp: NDArray[Any],
    certainty: NDArray[Any] | None = None,
    *,
    opacity: float = 0.5,
    path: str | os.PathLike[str] | None = None,
) -> UInt8Array:
    """Image 1 seen from image 0, blended over it; returns RGB uint8 (H, W, 3) of image 0's shape, at most 2400 wide.

    `warp` is float (H, W, 2): for each pixel of image 0 its place (x, y) in pixels of image 1, pixel centres at
    integers. `certainty`, float (H, W) in 0..1, scales the opacity. Where the warp leaves image 1 or is not finite,
    image 0 shows alone, darkened. `opacity` is image 1's share where it is certain.
    """
    import cv2

    base, other = canvas.as_rgb(np.asarray(image0)), canvas.as_rgb(np.asarray(image1))
    warp = np.asarray(warp, np.float32)
    if warp.shape != (*base.shape[:2], 2):
        raise UsageError(f"the warp of an image of {base.shape[:2]} has shape {(*base.shape[:2], 2)}; got {warp.shape}")
    if certainty is not None and np.shape(certainty) != base.shape[:2]:
        raise UsageError(f"the certainty of an image of {base.shape[:2]} has the same shape; got {np.shape(certainty)}")
    if max(other.shape[:2]) > 32_000:
        raise UsageError(
            f"an image of {other.shape[:2]} pixels is too long to warp", hint="reduce it below 32000 first"
        )
    limit = np.array([other.shape[1], other.shape[0]], np.float32) - 0.5
    inside = (np.isfinite(warp) & (warp >= -0.5) & (warp <= limit)).all(axis=2)
    places = np.nan_to_num(warp)
    seen = cv2.remap(other, places[..., 0], places[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    share = inside.astype(np.float32)
    if certainty is not None:
        share *= np.clip(np.nan_to_num(np.asarray(certainty, np.float32)), 0, 1)
    dark = (base * 0.45).astype(np.uint8)
    mixed = _blend(base, np.asarray(seen), np.full(base.shape[:2], opacity, np.float32))
    return _finished(_readable(_blend(dark, mixed, share)), path)


def _blend(under: UInt8Array, over: UInt8Array, share: NDArray[Any]) -> UInt8Array:
    weight = share[..., None].astype(np.float32)
    blended: UInt8Array = np.round(under * (1 - weight) + over * weight).astype(np.uint8)
    return blended


def _readable(pixels: UInt8Array) -> UInt8Array:
    """At most 2400 pixels wide."""
    height, width = pixels.shape[:2]
    if width <= canvas.MAX_WIDTH:
        return pixels
    return canvas.resize(pixels, (max(1, round(height * canvas.MAX_WIDTH / width)), canvas.MAX_WIDTH))


def _finished(picture: UInt8Array, path: str | os.PathLike[str] | None) -> UInt8Array:
    if path is not None:
        canvas.save_picture(picture, path)
    return picture
