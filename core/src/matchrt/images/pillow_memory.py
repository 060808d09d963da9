"""A Pillow image's pixels in one copy.

numpy asks Pillow for them as bytes, which are made piece by piece and joined, copied again, and all the while no other thread of Python
can run. Since 11.2 Pillow shows its own memory through the Arrow C data interface
(https://arrow.apache.org/docs/format/CDataInterface.html), from where OpenCV copies it without stopping anybody.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from matchrt.images.image import UInt8Array
from matchrt.images.memory import empty

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


class _Array(ctypes.Structure):
    """`struct ArrowArray`, as far as it is read."""


_Array._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_Array))),
]


class _Schema(ctypes.Structure):
    """`struct ArrowSchema`, as far as it is read."""

    _fields_ = (("format", ctypes.c_char_p),)


def pixels_of(image: PILImage) -> UInt8Array:
    """Pixels of a loaded image of mode L, (H, W), or RGB, (H, W, 3), in memory that nobody else writes."""
    convert: Any = getattr(
        sys.modules.get("cv2"), "cvtColor", None
    )  # reading alone does not load it; preprocessing does
    shown = _shown(image) if image.mode == "L" or convert is not None else None
    if shown is None:
        return np.asarray(image)  # over the bytes that Pillow gave: they are a copy, and nobody else's
    pixels, _keeper = shown
    copy = empty((*pixels.shape[:2], 3) if image.mode == "RGB" else pixels.shape, np.uint8)
    if image.mode == "L":
        np.copyto(copy, pixels)
        return copy
    return np.asarray(convert(pixels, sys.modules["cv2"].COLOR_RGBA2RGB, dst=copy), np.uint8)


def _shown(image: PILImage) -> tuple[UInt8Array, object] | None:
    """Pillow's own memory as (H, W) or (H, W, 4), and what keeps it alive; None where it does not show it in a known form."""
    from PIL import Image as PILModule

    module: Any = PILModule
    show: Any = getattr(image, "__arrow_c_array__", None)
    if show is None or getattr(module.core, "get_alignment", int)() != 1:
        return None
    try:
        schema, array = show()
    except (ValueError, MemoryError):  # an image of several blocks
        return None
    form = _Schema.from_address(_pointer(schema, b"arrow_schema")).format
    found = _Array.from_address(_pointer(array, b"arrow_array"))
    channels = {("L", b"C"): 1, ("RGB", b"+w:4"): 4}.get((image.mode, form))
    if channels == 4 and found.n_children == 1 and found.offset == 0:
        found = found.children[0].contents
    size = image.height * image.width * (channels or 0)
    if not size or (found.length, found.offset, found.n_buffers, found.n_children) != (size, 0, 2, 0):
        return None
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(found.buffers[1]))
    return raw.reshape(image.height, image.width, *([4] if channels == 4 else [])), (schema, array)


def _pointer(capsule: object, name: bytes) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return int(get(capsule, name))
