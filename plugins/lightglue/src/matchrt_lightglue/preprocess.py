"""Images to tensors, as cvg/LightGlue's `load_image` and `Extractor.extract` do it."""

from __future__ import annotations

import numpy as np

from matchrt.geometry.transform import ImageGeometry
from matchrt.images.grey import to_grey_float
from matchrt.images.image import Image
from matchrt.images.resize import frame, resize_antialiased, size_for_long_side
from matchrt.model import Settings, Size

CELL = 8
"""Inputs are padded to whole cells at the bottom and right; the extractor masks the padding, so it changes nothing."""


def preprocess_pair(
    images: tuple[Image, Image], settings: Settings
) -> tuple[dict[str, np.ndarray], tuple[ImageGeometry, ImageGeometry]]:
    """Tensors `image`, `scale`, `valid_size`, `size` of both images, and their geometry.

    Grey conversion comes before scaling, which gives what the published order gives: both are linear.
    """
    tensors: dict[str, np.ndarray] = {}
    geometries = []
    for index, image in enumerate(images):
        arrays, geometry = _preprocess(image, settings)
        tensors |= {f"{name}{index}": array for name, array in arrays.items()}
        geometries.append(geometry)
    return tensors, (geometries[0], geometries[1])


def _preprocess(image: Image, settings: Settings) -> tuple[dict[str, np.ndarray], ImageGeometry]:
    fixed = settings.size("size")
    valid = _valid_size(image.size, settings, fixed)
    network_size = fixed or (-(-valid[0] // CELL) * CELL, -(-valid[1] // CELL) * CELL)
    grey = to_grey_float(image.pixels)
    np.divide(grey, np.float32(255), out=grey)
    padded, content = frame(valid, network_size)
    resize_antialiased(grey, valid, out=content)
    geometry = ImageGeometry.from_resize(image.size, valid, network_size)
    return {
        "image": padded[None, None],
        "scale": np.array([geometry.scale], np.float32),
        "valid_size": np.array([valid], np.int32),
        "size": np.array([image.size], np.float32),
    }, geometry


def _valid_size(size: Size, settings: Settings, fixed: Size | None) -> Size:
    """(height, width) after scaling. With a fixed size the image is scaled to fit into it."""
    if fixed is not None:
        factor = min(fixed[0] / size[0], fixed[1] / size[1])
        return _clamped(round(size[0] * factor), fixed[0]), _clamped(round(size[1] * factor), fixed[1])
    if settings["long_side"] is None:
        return size
    return size_for_long_side(size, settings.integer("long_side"))


def _clamped(value: int, most: int) -> int:
    return max(1, min(value, most))
