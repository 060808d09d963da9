"""From decoded images to the network's inputs, by the recipes of the published pipelines. No torch.

* `squeeze`, MatchAnything's default: long side at most 832 by area, then exactly 480x640 without keeping the aspect; Pillow's grey;
  padded to 640x640.
* `aspect`, MatchAnything without that squeeze: long side at most the network's by area; Pillow's grey; floored to 32 by Lanczos;
  padded, usually to 832x832.
* `stretch`, EfficientLoFTR on ScanNet: OpenCV's grey; exactly the network's size, bilinear.
* `long-side`, EfficientLoFTR on MegaDepth: OpenCV's grey; long side to the network's, floored to 32, bilinear; padded.

Padding is zeros at the bottom and right; the valid rectangle is a multiple of 32 pixels. Upstream pads to the square of the image's
own longer side; here both images are padded to the graph's size, which is the same for `squeeze` and for any image that reaches
832 pixels, and lets two images of different sizes be matched, where upstream raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from matchrt.errors import ImageError, UsageError
from matchrt.images.grey import to_grey_pil
from matchrt.images.memory import empty
from matchrt.images.resize import (
    floor_to_multiple,
    frame,
    resize_area,
    resize_pil_lanczos,
    size_with_long_side_at_most,
)

Size = tuple[int, int]
"""(height, width) in pixels."""

RecipeName = Literal["squeeze", "aspect", "stretch", "long-side"]
DIVISOR = 32
LONG_SIDE = 832
"""MatchAnything's `resize_max`, and its training resolution."""

SQUEEZED: Size = (480, 640)
"""MatchAnything's `height` and `width` with `force_resize`."""


@dataclass(frozen=True)
class Recipe:
    """How an image becomes an input of `network_size` (height, width). Raises `UsageError` for a size the recipe cannot fill.

    `half_pixel`: scale back around pixel centres, (p + 0.5) s - 0.5 (MatchAnything), or around the corner, p s (EfficientLoFTR).
    """

    name: RecipeName
    network_size: Size

    def __post_init__(self) -> None:
        if self.name not in get_args(RecipeName):
            raise UsageError(f"unknown recipe {self.name!r}", hint=f"known: {', '.join(get_args(RecipeName))}")
        height, width = self.network_size
        if min(height, width) < DIVISOR or height % DIVISOR or width % DIVISOR:
            raise UsageError(
                f"a network size of {height}x{width} is not a multiple of {DIVISOR} on both sides",
                hint=f"the nearest below is {'x'.join(str(s) for s in floor_to_multiple((height, width), DIVISOR))}",
            )
        if self.name == "squeeze" and (height < SQUEEZED[0] or width < SQUEEZED[1]):
            raise UsageError(f"recipe squeeze fills {SQUEEZED[0]}x{SQUEEZED[1]} and does not fit {height}x{width}")

    @property
    def half_pixel(self) -> bool:
        """Whether MatchAnything's rule for scaling back holds."""
        return self.name in ("squeeze", "aspect")

    @property
    def pads(self) -> bool:
        """Whether the valid rectangle may be smaller than the input."""
        return self.name != "stretch"


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image ready for the network.

    `tensor` (1, 1, H, W) float32 in [0, 1]; `valid` (height, width) of the part that is not padding. A network keypoint (x, y) goes
    back in two steps, outside the graph: times `refit` (x, y), the size before over after the last resize (upstream's
    `hw_new`); then by `scale` (x, y), original size over the size before that resize, around centres if `half_pixel`.
    """

    tensor: NDArray[np.float32]
    valid: Size
    original: Size
    refit: tuple[float, float]
    scale: tuple[float, float]
    half_pixel: bool


def prepare(pixels: NDArray[np.uint8], recipe: Recipe) -> Prepared:
    """Pixels uint8 (H, W, 3) RGB or (H, W) to a network input. Raises `ImageError` for an image the recipe cannot take."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ImageError(f"an image must be uint8 (H, W) or (H, W, 3); got {pixels.dtype} {pixels.shape}")
    if min(pixels.shape[:2]) < 1:
        raise ImageError(f"an image of {pixels.shape[0]}x{pixels.shape[1]} pixels is empty")
    return _matchanything(pixels, recipe) if recipe.half_pixel else _efficientloftr(pixels, recipe)


def prepare_pair(
    images: Sequence[NDArray[np.uint8]], recipe: Recipe
) -> tuple[dict[str, NDArray[Any]], tuple[Prepared, Prepared]]:
    """Tensors image0, image1 (1, 1, H, W) float32 and valid0, valid1 (1, 2) int32, and how to go back."""
    first, second = (prepare(image, recipe) for image in images)
    tensors: dict[str, NDArray[Any]] = {
        "image0": first.tensor,
        "image1": second.tensor,
        "valid0": np.asarray([first.valid], np.int32),
        "valid1": np.asarray([second.valid], np.int32),
    }
    return tensors, (first, second)


def _matchanything(pixels: NDArray[np.uint8], recipe: Recipe) -> Prepared:
    """hloc `match_dense` with the settings of `matchanything_eloftr`, then `matchers/matchanything.py`."""
    rgb = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
    original = int(pixels.shape[0]), int(pixels.shape[1])
    limit = LONG_SIDE if recipe.name == "squeeze" else min(recipe.network_size)
    values = rgb.astype(np.float32)
    reduced = size_with_long_side_at_most(original, limit)
    if reduced != original:
        values = resize_area(values, reduced)
    if recipe.name == "squeeze":
        values = resize_area(values, SQUEEZED)
    before = int(values.shape[0]), int(values.shape[1])
    after = _floored(before, original, recipe)
    # Upstream hands the image over as float / 255, and truncates when it turns it back into bytes.
    grey = to_grey_pil((values / np.float32(255.0) * np.float32(255.0)).astype(np.uint8))
    if after != before:
        grey = resize_pil_lanczos(grey, after)
    refit = before[1] / after[1], before[0] / after[0]
    return _finish(grey, original, refit, (original[1] / before[1], original[0] / before[0]), recipe)


def _efficientloftr(pixels: NDArray[np.uint8], recipe: Recipe) -> Prepared:
    """Upstream's `read_scannet_gray` (stretch) and `read_megadepth_gray` (long-side, resize = the network's longer side)."""
    import cv2

    original = int(pixels.shape[0]), int(pixels.shape[1])
    grey = pixels
    if pixels.ndim == 3:
        grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY, dst=empty(original, np.uint8)), np.uint8)
    size = recipe.network_size
    if recipe.name == "long-side":
        scale = min(size) / max(original)
        size = _floored((round(original[0] * scale), round(original[1] * scale)), original, recipe)
    resized = np.asarray(cv2.resize(grey, (size[1], size[0]), dst=empty(size, np.uint8)), np.uint8)
    return _finish(resized, original, (1.0, 1.0), (original[1] / size[1], original[0] / size[0]), recipe)


def _floored(size: Size, original: Size, recipe: Recipe) -> Size:
    """Each side floored to 32; an image that is too narrow for it is refused, because upstream's size would be 0."""
    if min(size) < DIVISOR:
        raise ImageError(
            f"an image of {original[0]}x{original[1]} pixels becomes {size[0]}x{size[1]}, and its shorter side is below "
            f"{DIVISOR} pixels, which recipe {recipe.name!r} cannot use",
            hint="crop the image to a squarer part, enlarge it, or choose a recipe that ignores the aspect (squeeze, stretch)",
        )
    return floor_to_multiple(size, DIVISOR)


def _finish(
    grey: NDArray[np.uint8], original: Size, refit: tuple[float, float], scale: tuple[float, float], recipe: Recipe
) -> Prepared:
    valid = int(grey.shape[0]), int(grey.shape[1])
    padded, content = frame(valid, recipe.network_size)
    np.divide(grey, np.float32(255.0), out=content)
    return Prepared(padded[None, None], valid, original, refit, scale, recipe.half_pixel)
