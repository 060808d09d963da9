"""A pair of images on its way through a matcher."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matchrt.images.image import Image
from matchrt.images.read import read_image
from matchrt.model import Settings
from matchrt.plugins.dispatch import MatcherHooks
from matchrt.runtime.steps import Tensors


@dataclass(frozen=True)
class Prepared:
    """Two images, their tensors (those that `preprocess` made, later those that `postprocess` reads), the geometry that leads back,
    and the seconds that each stage took."""

    images: tuple[Image, Image]
    tensors: Tensors
    geometry: Any
    seconds: Mapping[str, float]


def prepare_pair(hooks: MatcherHooks, sources: tuple[Any, Any], settings: Settings) -> Prepared:
    """Read and preprocess one pair; a source may also be an `Image`, which was read before. Raises `ImageError`, `PluginError`."""
    begin = time.perf_counter()
    images = (_read(sources[0]), _read(sources[1]))
    read = time.perf_counter()
    tensors, geometry = hooks.preprocess(images, settings)
    seconds = {"read": read - begin, "preprocess": time.perf_counter() - read}
    return Prepared(images, dict(tensors), geometry, seconds)


def _read(source: Any) -> Image:
    return source if isinstance(source, Image) else read_image(source)
