"""Encoded images to 8-bit pixels through Pillow, and through OpenCV for 16-bit colour, which Pillow would truncate."""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from matchrt.errors import ImageError
from matchrt.images.image import Image, UInt8Array
from matchrt.images.pillow_memory import pixels_of

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_ORIENTATION_TAG = 0x0112
_HEADER_ERRORS = (SyntaxError, IndexError, TypeError, KeyError, ValueError, EOFError, OSError, struct.error)
_DECODE_ERRORS = (*_HEADER_ERRORS, MemoryError, RuntimeError)
_TRUNCATION_LOCK = threading.Lock()

_REFUSED_KINDS = (
    (b"GIF8", "a GIF"),
    (b"%PDF", "a PDF"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<svg", "an SVG drawing"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PK\x03\x04", "a zip archive"),
)


def is_pil_image(source: object) -> bool:
    """Whether `source` is a Pillow image; does not import Pillow for anything else."""
    if not any(base.__module__.partition(".")[0] == "PIL" for base in type(source).__mro__):
        return False
    from PIL import Image as PILModule

    return isinstance(source, PILModule.Image)


def open_header(stream: BinaryIO, name: str) -> PILImage:
    """Read the header of an encoded image: its size, mode and format are known after, no pixel is decoded.

    Goes through the formats' own openers, because `PIL.Image.open` applies Pillow's process-wide size limit and warns,
    and its formats cannot be trusted to be ours. Raises `ImageError` where no opener recognises the data.
    """
    from PIL import Image as PILModule

    from matchrt.images.read import _FORMATS_TEXT, FORMATS

    PILModule.init()
    prefix = stream.read(16)
    if not prefix:
        raise ImageError(f"{name} is empty", hint="the file has no bytes: copy or download it again")
    broken = ""
    for format_name in FORMATS:
        factory, accept = PILModule.OPEN.get(format_name, (None, None))
        if factory is None or (accept is not None and accept(prefix) is not True):
            continue
        stream.seek(0)
        try:
            return factory(stream, name)
        except _HEADER_ERRORS as error:
            broken = f"{format_name}: {_one_line(error)}"
    if broken:
        raise ImageError(f"{name} has a damaged header ({broken})", hint="copy or download the file again")
    raise ImageError(
        f"{name} is not an image that is read here: {_looks_like(stream)}", hint=f"convert it to one of {_FORMATS_TEXT}"
    )


def _looks_like(stream: BinaryIO) -> str:
    stream.seek(0)
    start = stream.read(64)
    for magic, kind in _REFUSED_KINDS:
        if start.startswith(magic):
            return f"it is {kind}"
    if start[4:8] == b"ftyp":
        return f"it is an ISO media file ({start[8:12].decode('ascii', 'replace')}: AVIF, HEIC or video)"
    text = start.decode("utf-8", "ignore")
    if len(text) >= len(start) - 3 and all(c.isprintable() or c.isspace() for c in text):
        return f"it is text that begins {' '.join(text.split())[:32]!r}"
    return f"it begins with the bytes {start[:8].hex(' ')}"


def decode_pil(opened: PILImage, name: str, stream: BinaryIO | None, apply_orientation: bool) -> Image:
    """Decode an opened Pillow image; `stream` is its encoded data where known."""
    notes: list[str] = []
    frames = _frame_count(opened)
    if frames > 1:
        notes.append(f"frame {opened.tell() + 1} of {frames}")
    turned_by_decoder = opened.format == "TIFF"  # Pillow and OpenCV both turn TIFF as they decode it
    deep_colour = stream is not None and _is_deep_colour(opened)
    orientation = _orientation(opened, notes) if turned_by_decoder else 1  # Pillow forgets a TIFF's once it turned it
    if not (deep_colour and turned_by_decoder):
        _load(opened, name)
    if not turned_by_decoder:
        orientation = _orientation(opened, notes)  # a PNG may carry it behind the pixels
    if stream is not None and deep_colour:
        pixels = _decode_deep_colour(stream, name, notes)
    else:
        pixels = _to_pixels(opened, name, notes)
    if turned_by_decoder and not apply_orientation:
        pixels = _turn(pixels, _INVERSE.get(orientation, orientation))
    elif apply_orientation and not turned_by_decoder:
        pixels = _turn(pixels, orientation)
    oriented = apply_orientation and orientation != 1
    if orientation != 1:
        notes.append(f"EXIF orientation {orientation} {'applied' if oriented else 'ignored'}")
    pixels = np.ascontiguousarray(pixels)
    pixels.flags.writeable = False
    return Image(pixels, name, orientation, oriented, tuple(notes))


def _frame_count(opened: PILImage) -> int:
    try:
        return int(getattr(opened, "n_frames", 1) or 1)
    except _DECODE_ERRORS:
        return 1


def _load(opened: PILImage, name: str) -> None:
    """Decode; a truncated file is an error even where the process asks Pillow to pad it with grey."""
    from PIL import ImageFile

    try:
        if not ImageFile.LOAD_TRUNCATED_IMAGES:
            opened.load()
            return
        with _TRUNCATION_LOCK:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            try:
                opened.load()
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = True
    except _DECODE_ERRORS as error:
        raise ImageError(
            f"{name} cannot be decoded: {_one_line(error)}",
            hint="the file is damaged or incomplete: copy or download it again",
        ) from None


def _orientation(opened: PILImage, notes: list[str]) -> int:
    try:
        value = opened.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODE_ERRORS as error:
        notes.append(f"EXIF unreadable, taken as upright ({_one_line(error)})")
        return 1
    if isinstance(value, int) and 1 <= value <= 8:
        return value
    notes.append(f"EXIF orientation {value!r} is not 1 to 8, taken as upright")
    return 1


_INVERSE = {6: 8, 8: 6}  # the other orientations are their own inverses


def _turn(pixels: UInt8Array, orientation: int) -> UInt8Array:
    """Undo a camera orientation (EXIF 2.32, tag 0x0112) so that row 0 is the visual top and column 0 the left."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _is_deep_colour(opened: PILImage) -> bool:
    """Whether the file stores 16 bits a channel that Pillow would cut to 8 (PNG and TIFF colour)."""
    if opened.format not in ("PNG", "TIFF") or opened.mode not in ("RGB", "RGBA", "LA"):
        return False
    for tile in getattr(opened, "tile", []):
        arguments = tile[3]
        raw_mode = arguments if isinstance(arguments, str) else (arguments or ("",))[0]
        if ";16" in str(raw_mode) and not str(raw_mode).startswith("I"):
            return True
    return False


def _decode_deep_colour(stream: BinaryIO, name: str, notes: list[str]) -> UInt8Array:
    import cv2

    stream.seek(0)
    data = np.frombuffer(stream.read(), dtype=np.uint8)
    try:
        values: Any = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        values, reason = None, _one_line(error)
    else:
        reason = "OpenCV cannot read this 16-bit variant"
    if values is None or values.dtype != np.uint16:
        raise ImageError(f"{name} cannot be decoded: {reason}", hint="save the image with 8 bits a channel")
    if values.ndim == 3:
        if values.shape[2] == 4:
            notes.append("alpha dropped")
        values = values[..., 2::-1]
    return _from_16_bit(values, notes)


def _from_16_bit(values: NDArray[Any], notes: list[str]) -> UInt8Array:
    """round(v / 257) exactly: 0 stays 0 and 65535 becomes 255; 257 is odd, so no value lies half-way."""
    notes.append("16 bits scaled to 8 by v / 257")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _to_pixels(image: PILImage, name: str, notes: list[str]) -> UInt8Array:
    mode = image.mode
    if mode in ("L", "RGB"):
        return pixels_of(image)
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bit(np.asarray(image).astype(np.uint16), notes)
    if mode in ("F", "I"):
        kind = "floating-point" if mode == "F" else "32-bit integer"
        raise ImageError(
            f"{name} has {kind} pixels, whose range is unknown",
            hint="scale it to 8 or 16 bits and save it as PNG, or pass a uint8 array",
        )
    if mode == "1":
        notes.append("1-bit image widened to 0 and 255")
        return np.array(image.convert("L"))
    if mode in ("LA", "RGBA"):
        notes.append("alpha dropped")
        return np.array(image)[..., 0 if mode == "LA" else slice(0, 3)]
    return _convert_to_rgb(image, name, notes)


def _convert_to_rgb(image: PILImage, name: str, notes: list[str]) -> UInt8Array:
    try:
        converted = np.array(image.convert("RGB"))
    except _DECODE_ERRORS as error:
        raise ImageError(
            f"{name} has pixels of kind {image.mode!r} that cannot become RGB: {_one_line(error)}",
            hint="save the image as 8-bit RGB",
        ) from None
    notes.append(
        {"P": "palette applied", "PA": "palette applied, alpha dropped"}.get(image.mode, f"{image.mode} to RGB")
    )
    return converted


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
