"""Reading, resizing and padding images in numpy: no torch, no OpenCV or Pillow until needed."""

from __future__ import annotations

from matchrt.images.grey import to_grey_float, to_grey_pil
from matchrt.images.image import Image
from matchrt.images.read import DEFAULT_MAX_PIXELS, FORMATS, read_image
from matchrt.images.resize import (
    floor_to_multiple,
    frame,
    pad_bottom_right,
    resize_antialiased,
    resize_area,
    resize_bilinear,
    resize_pil_bicubic,
    resize_pil_lanczos,
    size_for_long_side,
    size_with_long_side_at_most,
)

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "FORMATS",
    "Image",
    "floor_to_multiple",
    "frame",
    "pad_bottom_right",
    "read_image",
    "resize_antialiased",
    "resize_area",
    "resize_bilinear",
    "resize_pil_bicubic",
    "resize_pil_lanczos",
    "size_for_long_side",
    "size_with_long_side_at_most",
    "to_grey_float",
    "to_grey_pil",
]
