"""A pair of images on its way through a matcher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matchrt.images.image import Image
from matchrt.runtime.steps import Tensors


@dataclass(frozen=True)
class Prepared:
    """Two images, their tensors (those that `preprocess` made, later those that `postprocess` reads), the geometry that leads back,
    and the seconds that each stage took."""

    images: tuple[Image, Image]
    tensors: Tensors
    geometry: Any
    seconds: Mapping[str, float]
