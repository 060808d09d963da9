"""Images to RoMa's inputs, by either recipe. Numpy in, numpy out.

matchanything: RGB in [0, 1], stretched bilinearly without antialiasing to the coarse and, from the same source, to the
upsampling size; no mean and standard deviation (MatchAnything, `self_inference_time_match`).
upstream: bicubic, antialiased, on 8-bit images, then ImageNet's mean and standard deviation (RoMa, `match`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from matchrt.errors import ImageError
from matchrt_roma.settings import RomaSettings

Array = npt.NDArray[Any]
Size = tuple[int, int]

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
PARITY_SIZE: Size = (480, 640)
PARITY_LONGEST = 832


def as_rgb(image: Array) -> Array:
    """`(H, W)`, `(H, W, 1)` or `(H, W, 3)` uint8 to `(H, W, 3)`. Raises `ImageError` for anything else."""
    if image.dtype != np.uint8:
        raise ImageError(f"RoMa reads 8-bit images, not {image.dtype}", hint="convert to uint8 RGB first")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ImageError(f"an image of shape {image.shape} is neither gray nor RGB", hint="give (H, W) or (H, W, 3)")
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def stretch_bilinear(image: Array, size: Size) -> Array:
    """`(H, W, C)` float32 to `size`, two taps an axis between pixel centres whatever the ratio (no antialiasing)."""
    for axis, target in enumerate(size):
        low, high, weight = _taps(image.shape[axis], target)
        shape = [1, 1, 1]
        shape[axis] = target
        weight = weight.reshape(shape)
        image = np.take(image, low, axis) * (1 - weight) + np.take(image, high, axis) * weight
    return image


def _taps(source: int, target: int) -> tuple[Array, Array, Array]:
    scale = np.float32(source) / np.float32(target)
    position = np.maximum((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = np.minimum(position.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), (position - low).astype(np.float32)


def resize_bicubic(image: Array, size: Size) -> Array:
    """`(H, W, 3)` uint8 to `size`, uint8: Pillow's bicubic, whose kernel widens when it shrinks (antialiasing)."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def network_image(image: Array, size: Size, recipe: str) -> Array:
    """`(H, W, 3)` uint8 to the network's `(3, h, w)` float32."""
    if recipe == "matchanything":
        resized = stretch_bilinear(image.astype(np.float32) / np.float32(255), size)
    else:
        resized = (resize_bicubic(image, size).astype(np.float32) / np.float32(255) - MEAN) / STD
    return np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32)


def parity_image(image: Array) -> Array:
    """What MatchAnything's demo feeds its network: at most 832 pixels long, then squeezed to 640x480.

    Its aspect ratio is lost, as there; for comparing with it, not for matching well.
    """
    import cv2

    height, width = image.shape[:2]
    scale = PARITY_LONGEST / max(height, width)
    if scale < 1:
        shrunk = (round(width * scale), round(height * scale))
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    if image.shape[:2] != PARITY_SIZE:
        image = cv2.resize(image, (PARITY_SIZE[1], PARITY_SIZE[0]), interpolation=cv2.INTER_AREA)
    return image


def preprocess_pair(image0: Array, image1: Array, settings: RomaSettings, *, parity: bool = False) -> dict[str, Array]:
    """Two uint8 images to `images` `(1, 2, 3, h, w)` and, when the bundle upsamples, `images_high` `(1, 2, 3, H, W)`.

    `parity` squeezes both as MatchAnything's demo does first. Raises `ImageError` (see `as_rgb`).
    """
    sources = [as_rgb(image) for image in (image0, image1)]
    if parity:
        sources = [parity_image(image) for image in sources]

    def stacked(size: Size) -> Array:
        return np.stack([network_image(image, size, settings.recipe) for image in sources])[None]

    tensors = {"images": stacked(settings.size)}
    if settings.upsamples:
        tensors["images_high"] = stacked(settings.upsample_map_size(1))
    return tensors
