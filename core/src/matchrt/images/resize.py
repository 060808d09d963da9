"""Resizing and padding, one function for each rule that a matcher's recipe uses.

Sizes are (height, width). Nothing here normalises or changes the channel order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matchrt.errors import UsageError
from matchrt.images.memory import empty, temporary

if TYPE_CHECKING:
    from PIL.Image import Resampling

Size = tuple[int, int]
Float32Array = NDArray[np.float32]
_BLOCK = 262_144
"""Values in a block of rows: a megabyte."""


def size_for_long_side(size: Size, long_side: int) -> Size:
    """The size whose longer side is exactly `long_side`, the shorter one floored (SuperPoint + LightGlue).

    Enlarges too. The arithmetic is kornia's `side="long"`: int(long_side / (w / h)) or int(long_side * (w / h)), in
    double precision, so 480x640 gives 768x1024 and 333x777 gives 438x1024. Raises `UsageError` where the shorter
    side would vanish.
    """
    height, width = _checked(size)
    aspect = width / height
    result = (long_side, int(long_side * aspect)) if aspect < 1.0 else (int(long_side / aspect), long_side)
    if min(result) < 1:
        raise UsageError(
            f"an image of {height}x{width} pixels has no room for a long side of {long_side}: "
            f"the shorter side becomes {min(result)}",
            hint="crop the image, or choose a larger size",
        )
    return result


def size_with_long_side_at_most(size: Size, long_side: int) -> Size:
    """The size reduced so that its longer side is `long_side`, sides rounded; never enlarged (MatchAnything)."""
    height, width = _checked(size)
    scale = long_side / max(height, width)
    if scale >= 1.0:
        return height, width
    return max(1, round(height * scale)), max(1, round(width * scale))


def floor_to_multiple(size: Size, multiple: int) -> Size:
    """Each side floored to a multiple of `multiple`, at least one multiple (MatchAnything-ELoFTR uses 32)."""
    height, width = _checked(size)
    return max(height // multiple, 1) * multiple, max(width // multiple, 1) * multiple


def resize_antialiased(pixels: Float32Array, size: Size, out: Float32Array | None = None) -> Float32Array:
    """kornia's `resize(interpolation="bilinear", antialias=True, align_corners=None)` (SuperPoint + LightGlue).

    Where either side shrinks, a Gaussian goes first, per axis with factor f = in / out: sigma = max((f - 1) / 2,
    0.001), window = int(max(4 sigma, 3)) made odd, borders mirrored without repeating the edge pixel. Then bilinear
    at half-pixel centres. `pixels` is float32 (H, W) or (H, W, C) in any range; returns the same number of axes,
    in `out` if it is given: float32 of that shape, which may be a part of a larger array.
    """
    _check_float(pixels)
    lengths, outs = _checked(pixels.shape[:2]), _checked(size)
    blurred = max(lengths[0] / outs[0], lengths[1] / outs[1]) > 1.0
    return _resample(pixels, [_taps(n, o, blurred) for n, o in zip(lengths, outs, strict=True)], out)


def _gaussian(factor: float, length: int) -> Float32Array:
    """The normalised antialiasing window for one axis that shrinks by `factor` (an axis of one pixel is left alone)."""
    sigma = max((factor - 1.0) / 2.0, 0.001)
    window = int(max(4.0 * sigma, 3.0)) | 1
    if length == 1:
        window = 1
    x = np.arange(window, dtype=np.float64) - window // 2
    weights = np.exp(-(x**2) / (2.0 * sigma**2))
    normalised: Float32Array = (weights / weights.sum()).astype(np.float32)
    return normalised


def resize_bilinear(pixels: Float32Array, size: Size) -> Float32Array:
    """Bilinear at half-pixel centres without antialiasing, as `torch.nn.functional.interpolate` with
    `align_corners=False` (MatchAnything-RoMa: both network inputs).

    `pixels` is float32 (H, W) or (H, W, C). The source positions are computed in float32 like torch's, so the result
    agrees to about 1e-7 of the range where `cv2.resize` strays by 2e-5.
    """
    _check_float(pixels)
    lengths, outs = _checked(pixels.shape[:2]), _checked(size)
    if lengths == outs:
        return pixels.copy()
    return _resample(pixels, [_taps(n, o, False) for n, o in zip(lengths, outs, strict=True)])


Taps = tuple[NDArray[np.intp], Float32Array]
"""Source indices and their weights, both (taps, output length)."""


@lru_cache(maxsize=64)
def _taps(length: int, out_length: int, blurred: bool) -> Taps:
    """Filtering an axis with the antialiasing window, if `blurred`, and then sampling it bilinearly, as one weighted sum for each
    output. Filtering only what is sampled is what makes a large reduction cheap.
    """
    window = _gaussian(length / out_length, length) if blurred else np.ones(1, np.float32)
    scale = np.float32(length) / np.float32(out_length)
    position = scale * (np.arange(out_length, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    position = np.maximum(position, np.float32(0))
    low = np.minimum(position.astype(np.intp), length - 1)
    second = np.clip(position - low.astype(np.float32), np.float32(0), np.float32(1))
    second[low == length - 1] = 0
    steps = np.arange(len(window) + 1)[:, None]
    indices = _mirrored(low[None] + steps - len(window) // 2, length)
    padded = np.pad(window, 1)
    weights = ((np.float32(1) - second) * padded[1:, None] + second * padded[:-1, None]).astype(np.float32)
    indices.flags.writeable = weights.flags.writeable = False  # they are kept
    return indices, weights


def _mirrored(indices: NDArray[np.intp], length: int) -> NDArray[np.intp]:
    """Indices beyond an end mirrored about the end pixel, which is not repeated."""
    if length == 1:
        return np.zeros_like(indices)
    period = 2 * (length - 1)
    folded = indices % period
    return np.minimum(folded, period - folded)


def _resample(pixels: Float32Array, taps: list[Taps], out: Float32Array | None = None) -> Float32Array:
    """Weighted sums along both axes, in the order that is less work."""
    rows, columns = taps
    (height, width), tail = pixels.shape[:2], pixels.shape[2:]
    new_height, new_width = rows[0].shape[1], columns[0].shape[1]
    if tail and tail[0] > 4:  # OpenCV transposes up to 4 channels
        planes = (_resample(np.ascontiguousarray(c), taps) for c in np.moveaxis(pixels, 2, 0))
        return np.stack(list(planes), 2)
    result = empty((new_height, new_width, *tail)) if out is None else out
    costs = [
        new_height * width * (len(rows[0]) + 1) + new_height * new_width * (len(columns[0]) + 1),
        height * width + height * new_width * (len(columns[0]) + 1) + new_height * new_width * len(rows[0]),
    ]
    if costs[0] <= costs[1]:
        values = _sum_rows(pixels, *rows, temporary("rows", (new_height, width, *tail)))
        values = _sum_rows(_turned(values), *columns, temporary("columns", (new_width, new_height, *tail)))
        np.copyto(result, _turned(values))
    else:
        values = _sum_rows(_turned(pixels), *columns, temporary("columns", (new_width, height, *tail)))
        _sum_rows(_turned(values), *rows, result)
    return result


def _turned(pixels: Float32Array) -> Float32Array:
    """Rows and columns exchanged; gone with the next call in this thread."""
    import cv2

    turned = temporary("turned", (pixels.shape[1], pixels.shape[0], *pixels.shape[2:]))
    return np.asarray(cv2.transpose(pixels, dst=turned), np.float32).reshape(turned.shape)


def _sum_rows(
    pixels: Float32Array, indices: NDArray[np.intp], weights: Float32Array, out: Float32Array
) -> Float32Array:
    """Each row of `out` as the weighted sum of the rows `indices[:, row]`; in blocks that stay in the processor's cache."""
    block = max(1, _BLOCK // max(1, pixels[0].size))
    room = temporary("terms", (min(block, len(out)), *pixels.shape[1:]))
    factors = weights.reshape(*weights.shape, *[1] * (pixels.ndim - 1))
    for start in range(0, len(out), block):
        part = slice(start, start + block)
        total = out[part]
        term = room[: len(total)]
        for number in range(len(indices)):
            pixels.take(indices[number, part], axis=0, out=term, mode="clip")  # "raise" would take a detour
            np.multiply(term, factors[number, part], out=total if number == 0 else term)
            if number:
                np.add(total, term, out=total)
    return out


def resize_area(pixels: NDArray[Any], size: Size) -> NDArray[Any]:
    """OpenCV's area interpolation, or bilinear where either side grows (MatchAnything: both steps of its loader).

    `pixels` is (H, W) or (H, W, 3), uint8 or float32; the dtype is kept.
    """
    import cv2

    height, width = _checked(pixels.shape[:2])
    out_height, out_width = _checked(size)
    grows = width < out_width or height < out_height
    method = cv2.INTER_LINEAR if grows else cv2.INTER_AREA
    return np.asarray(cv2.resize(pixels, (out_width, out_height), interpolation=method))


def resize_pil_lanczos(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Pillow's Lanczos filter on 8-bit pixels, antialiased and rounded (MatchAnything-ELoFTR: floor to 32)."""
    from PIL import Image as PILImage

    return _resize_pil(pixels, size, PILImage.Resampling.LANCZOS)


def resize_pil_bicubic(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Pillow's bicubic filter on 8-bit pixels, antialiased and rounded: torchvision's `Resize` of a PIL image with
    `InterpolationMode.BICUBIC` (RoMa as published: both network inputs).
    """
    from PIL import Image as PILImage

    return _resize_pil(pixels, size, PILImage.Resampling.BICUBIC)


def _resize_pil(pixels: NDArray[np.uint8], size: Size, method: Resampling) -> NDArray[np.uint8]:
    from PIL import Image as PILImage

    if pixels.dtype != np.uint8:
        raise UsageError(f"this resize rounds to 8 bits and takes uint8; got dtype {pixels.dtype}, {pixels.shape}")
    out_height, out_width = _checked(size)
    return np.array(PILImage.fromarray(pixels).resize((out_width, out_height), method))


def pad_bottom_right(pixels: NDArray[Any], size: Size) -> tuple[NDArray[Any], Size]:
    """Zeros below and to the right up to `size` (MatchAnything-ELoFTR); returns the padded array and the valid size.

    `pixels` is (H, W) or (H, W, C). Raises `UsageError` where the image is larger than `size`.
    """
    height, width = _checked(pixels.shape[:2])
    out_height, out_width = _checked(size)
    if height > out_height or width > out_width:
        raise UsageError(f"cannot pad {height}x{width} pixels to {out_height}x{out_width}: the image is larger")
    padded = np.zeros((out_height, out_width, *pixels.shape[2:]), dtype=pixels.dtype)
    padded[:height, :width] = pixels
    return padded, (height, width)


def frame(valid: Size, size: Size) -> tuple[Float32Array, Float32Array]:
    """A float32 array of `size` whose zeros below and to the right of `valid` are set already, and the part that is left to be
    filled: what `pad_bottom_right` gives, without a copy. Raises `UsageError` where `valid` is larger.
    """
    (height, width), (out_height, out_width) = _checked(valid), _checked(size)
    if height > out_height or width > out_width:
        raise UsageError(f"cannot pad {height}x{width} pixels to {out_height}x{out_width}: the image is larger")
    whole = empty((out_height, out_width))
    whole[height:] = 0
    whole[:height, width:] = 0
    return whole, whole[:height, :width]


def _checked(size: tuple[int, ...]) -> Size:
    if len(size) != 2 or min(size) < 1:
        raise UsageError(f"a size is (height, width), both at least 1; got {tuple(size)}")
    return int(size[0]), int(size[1])


def _check_float(pixels: NDArray[Any]) -> None:
    if pixels.dtype != np.float32 or pixels.ndim not in (2, 3):
        raise UsageError(f"expected float32 pixels (H, W) or (H, W, C); got dtype {pixels.dtype}, shape {pixels.shape}")
