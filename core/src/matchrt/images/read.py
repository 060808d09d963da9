"""Images from a path, an array, a Pillow image or bytes, checked by their header before anything is decoded."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from matchrt.errors import ImageError
from matchrt.images.image import Image

DEFAULT_MAX_PIXELS = 64_000_000
"""Images of more pixels are refused before decoding, unless the caller raises the limit."""

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000")
"""The formats that are read, by Pillow's names; PPM stands for PBM, PGM, PPM and PNM."""

_FORMATS_TEXT = "JPEG, PNG, TIFF, WebP, BMP, PNM and JPEG 2000"

ImageSource = Any
"""A path (str or `os.PathLike`), uint8 array, Pillow image, or bytes."""


def read_image(source: ImageSource, *, max_pixels: int = DEFAULT_MAX_PIXELS, apply_orientation: bool = True) -> Image:
    """Read one image as 8-bit RGB or grey.

    `source` is a path, an encoded image as bytes, a Pillow image, or a uint8 array (H, W), (H, W, 1) or (H, W, 3) in
    **RGB** order (OpenCV loads BGR: reverse the last axis first). Of files, the header is read first and anything above
    `max_pixels` is refused before a pixel is allocated. `apply_orientation` turns the picture as its EXIF tag asks.
    Sixteen-bit values become round(v / 257), alpha is dropped, CMYK and palettes become RGB, and of an animation the
    first frame is read: `Image.notes` says each.

    Raises `ImageError`, one line and a hint, for whatever cannot be read or is refused.
    """
    from matchrt.images import decode

    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_stream(io.BytesIO(source), f"bytes ({len(source)})", max_pixels, apply_orientation)
    if isinstance(source, (str, os.PathLike)):
        path = Path(os.fsdecode(source))
        with _opened(path) as stream:
            return _from_stream(stream, str(path), max_pixels, apply_orientation)
    if decode.is_pil_image(source):
        name = str(getattr(source, "filename", "") or "") or "Pillow image"
        _check_size((source.height, source.width), name, max_pixels)
        return decode.decode_pil(source, name, None, apply_orientation)
    raise ImageError(
        f"cannot read an image from {type(source).__name__}",
        hint="pass a path, bytes, a Pillow image or a uint8 array (H, W), (H, W, 1) or (H, W, 3) in RGB order",
    )


def _from_stream(stream: BinaryIO, name: str, max_pixels: int, apply_orientation: bool) -> Image:
    from matchrt.images import decode

    opened = decode.open_header(stream, name)
    _check_size((opened.height, opened.width), name, max_pixels)
    return decode.decode_pil(opened, name, stream, apply_orientation)


def _from_array(array: NDArray[Any], max_pixels: int) -> Image:
    got = f"got dtype {array.dtype}, shape {array.shape}"
    if array.dtype != np.uint8:
        hint = "convert to 8 bits yourself, for example (array * 255).round().astype('uint8') for values in 0..1"
        raise ImageError(f"an image array must be uint8; {got}", hint=hint)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        hint = "pass (H, W) grey or (H, W, 3) RGB"
        if array.ndim == 3 and array.shape[0] in (1, 3):
            hint = "channels come last here: array.transpose(1, 2, 0)"
        elif array.ndim == 3 and array.shape[2] == 4:
            hint = "drop the alpha channel: array[..., :3]"
        raise ImageError(f"an image array must be (H, W), (H, W, 1) or (H, W, 3); {got}", hint=hint)
    _check_size((array.shape[0], array.shape[1]), f"array {array.shape}", max_pixels)
    pixels = np.ascontiguousarray(array).view()
    pixels.flags.writeable = False
    return Image(pixels, f"array {array.shape}")


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    height, width = size
    if height < 1 or width < 1:
        raise ImageError(f"{name}: the image is empty ({height}x{width} pixels)", hint="every side needs a pixel")
    if height * width > max_pixels:
        raise ImageError(
            f"{name}: {height}x{width} is {height * width:,} pixels, above the limit of {max_pixels:,}",
            hint="make the image smaller, or raise max_pixels if you trust where it comes from",
        )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The regular file at `path`, open for reading."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path} is a folder, not an image", hint="name a file in it")
        if not stat.S_ISREG(mode):
            raise ImageError(f"{path} is not a regular file", hint="name an image file")
        stream = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"{path} does not exist", hint=_missing_hint(path)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path} cannot be opened: {reason}", hint="check the path and its permissions") from None
    with stream:
        yield stream


def _missing_hint(path: Path) -> str:
    if str(path).startswith(("http:/", "https:/")):
        return "images are not downloaded: fetch the file first"
    import difflib

    try:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    except OSError:
        return f"its folder {path.parent} cannot be listed either"
    return f"did you mean {path.parent / near[0]}?" if near else f"the current folder is {Path.cwd()}"
