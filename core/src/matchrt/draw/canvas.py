"""What all pictures share: colour, scaling to a readable size, a strip of text, writing the file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchrt.errors import UsageError

UInt8Array = NDArray[np.uint8]
MAX_WIDTH = 2400
"""The widest picture, in pixels."""

BACKGROUND = (24, 26, 30)
TEXT = (236, 238, 240)
TEXT_QUIET = (158, 163, 170)

_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def as_rgb(pixels: NDArray[Any]) -> UInt8Array:
    """uint8 (H, W, 3) from uint8 (H, W), (H, W, 1) or (H, W, 3)."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise UsageError(f"a picture is drawn on uint8 (H, W) or (H, W, 3); got {pixels.dtype}, shape {pixels.shape}")
    if pixels.size == 0:
        raise UsageError(f"cannot draw on an empty image of shape {pixels.shape}")
    flat = pixels.reshape(*pixels.shape[:2], -1)
    return np.repeat(flat, 3, axis=2) if flat.shape[2] == 1 else flat


def resize(pixels: NDArray[Any], size: tuple[int, int], *, smooth: bool = False) -> NDArray[Any]:
    """`pixels` at `size` (height, width): averaged where they shrink, smooth where they grow, and blocky where they grow
    fourfold, so that single pixels show, unless `smooth`.
    """
    import cv2

    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    factor = size[0] / height
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST if factor >= 4 and not smooth else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size[::-1], interpolation=method))


def colours(values: NDArray[Any], *, low: float = 0.0, high: float = 1.0) -> UInt8Array:
    """RGB (N, 3) of `values` (N,) between `low` and `high` by the viridis map; values that are not finite count as low."""
    import cv2

    span = (np.nan_to_num(np.asarray(values, np.float64), nan=low) - low) / max(high - low, 1e-12)
    levels = np.round(np.clip(span, 0, 1) * 255).astype(np.uint8).reshape(-1, 1)
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS).reshape(-1, 3)[:, ::-1])


def font(size: float) -> Any:
    """Pillow's own scalable font (its fixed bitmap font in builds without FreeType)."""
    from PIL import ImageFont

    return ImageFont.load_default(size=max(size, 8))


def fitting(text: str, width: float, size: float) -> tuple[str, Any]:
    """`text` and a font in which it is at most `width` pixels wide: smaller down to 60 %, then cut with an ellipsis."""
    chosen = font(size)
    if chosen.getlength(text) > width:
        chosen = font(max(size * max(width / chosen.getlength(text), 0.6), 8))
    while text and chosen.getlength(text) > width:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text, chosen


def save_picture(picture: UInt8Array, path: str | os.PathLike[str]) -> None:
    """Write RGB (H, W, 3) as PNG, JPEG or WebP by suffix, whole or not at all. Raises `UsageError` for other suffixes."""
    from PIL import Image as PILImage

    from matchrt.files.atomic import atomic_write_bytes

    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise UsageError(
            f"cannot draw to {os.fspath(path)}: no picture format has the suffix {suffix!r}",
            hint=f"known suffixes: {', '.join(_SUFFIXES)}",
        )
    buffer = io.BytesIO()
    options = {} if suffix == ".png" else {"quality": 92}
    PILImage.fromarray(picture).save(buffer, _SUFFIXES[suffix], **options)
    atomic_write_bytes(path, buffer.getvalue())
