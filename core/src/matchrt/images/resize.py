"""Resizing and padding, one function for each rule that a matcher's recipe uses.

Sizes are (height, width). Nothing here normalises or changes the channel order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matchrt.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Resampling

Size = tuple[int, int]
Float32Array = NDArray[np.float32]


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


def resize_antialiased(pixels: Float32Array, size: Size) -> Float32Array:
    """kornia's `resize(interpolation="bilinear", antialias=True, align_corners=None)` (SuperPoint + LightGlue).

    Where either side shrinks, a Gaussian goes first, per axis with factor f = in / out: sigma = max((f - 1) / 2,
    0.001), window = int(max(4 sigma, 3)) made odd, borders mirrored without repeating the edge pixel. Then bilinear
    at half-pixel centres. `pixels` is float32 (H, W) or (H, W, C) in any range; returns the same number of axes.
    """
    _check_float(pixels)
    height, width = _checked(pixels.shape[:2])
    out_height, out_width = _checked(size)
    factors = height / out_height, width / out_width
    if max(factors) > 1.0:
        kernels = [_gaussian(f, n) for f, n in zip(factors, (height, width), strict=True)]
        pixels = _filter_separable(pixels, kernels[0], kernels[1])
    return resize_bilinear(pixels, size)


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


def _filter_separable(pixels: Float32Array, rows: Float32Array, columns: Float32Array) -> Float32Array:
    import cv2

    # OpenCV takes at most 4 channels in one call, and drops an axis of length one.
    channels = pixels.reshape(*pixels.shape[:2], -1)
    filtered = [
        cv2.sepFilter2D(np.ascontiguousarray(channels[..., c]), -1, columns, rows, borderType=cv2.BORDER_REFLECT_101)
        for c in range(channels.shape[2])
    ]
    return np.stack(filtered, axis=-1).reshape(pixels.shape).astype(np.float32, copy=False)


def resize_bilinear(pixels: Float32Array, size: Size) -> Float32Array:
    """Bilinear at half-pixel centres without antialiasing, as `torch.nn.functional.interpolate` with
    `align_corners=False` (MatchAnything-RoMa: both network inputs).

    `pixels` is float32 (H, W) or (H, W, C). The source positions are computed in float32 like torch's, so the result
    agrees to about 1e-7 of the range where `cv2.resize` strays by 2e-5.
    """
    _check_float(pixels)
    height, width = _checked(pixels.shape[:2])
    out_height, out_width = _checked(size)
    if (out_height, out_width) == (height, width):
        return pixels.copy()
    trailing = (1,) * (pixels.ndim - 2)
    low, high, weight = _bilinear_taps(width, out_width)
    weight = weight.reshape(1, -1, *trailing)
    if out_height < height:  # the rows first where that leaves fewer pixels for the columns
        pixels = _blend_rows(pixels, height, out_height)
    across = pixels[:, low] * (np.float32(1) - weight) + pixels[:, high] * weight
    return across if out_height < height else _blend_rows(across, height, out_height)


def _blend_rows(pixels: Float32Array, height: int, out_height: int) -> Float32Array:
    low, high, weight = _bilinear_taps(height, out_height)
    weight = weight.reshape(-1, *(1,) * (pixels.ndim - 1))
    blended: Float32Array = pixels[low] * (np.float32(1) - weight) + pixels[high] * weight
    return blended


def _bilinear_taps(length: int, out_length: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Float32Array]:
    """For each output position: the two source indices and the weight of the second."""
    scale = np.float32(length) / np.float32(out_length)
    position = scale * (np.arange(out_length, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    position = np.maximum(position, np.float32(0))
    low = np.minimum(position.astype(np.intp), length - 1)
    weight = np.clip(position - low.astype(np.float32), np.float32(0), np.float32(1))
    return low, np.minimum(low + 1, length - 1), weight


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


def _checked(size: tuple[int, ...]) -> Size:
    if len(size) != 2 or min(size) < 1:
        raise UsageError(f"a size is (height, width), both at least 1; got {tuple(size)}")
    return int(size[0]), int(size[1])


def _check_float(pixels: NDArray[Any]) -> None:
    if pixels.dtype != np.float32 or pixels.ndim not in (2, 3):
        raise UsageError(f"expected float32 pixels (H, W) or (H, W, C); got dtype {pixels.dtype}, shape {pixels.shape}")
