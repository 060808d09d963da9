"""Preprocessing and postprocessing of one pair in core's terms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from matchrt.geometry.transform import ImageGeometry
from matchrt.images.image import Image
from matchrt.matches import DenseWarp, Matches
from matchrt.model import MatcherSpec, Settings
from matchrt_roma.build import recipe_of
from matchrt_roma.postprocess import MatchSettings, postprocess
from matchrt_roma.preprocess import preprocess_pair as preprocess
from matchrt_roma.settings import RomaSettings


def preprocess_pair(
    matcher: MatcherSpec, images: tuple[Image, Image], settings: Settings
) -> tuple[dict[str, np.ndarray], tuple[ImageGeometry, ImageGeometry]]:
    """Tensors `images` and, where there is an upsampling pass, `images_high`; and the geometry of both images."""
    size = settings.size("size")
    assert size is not None
    high = settings.size("upsample_size") if settings.flag("upsample") else None
    sizes = RomaSettings(recipe=recipe_of(matcher), size=size, upsample_size=high)
    tensors = preprocess(images[0].pixels, images[1].pixels, sizes, parity=settings.flag("parity"))
    geometry = [
        ImageGeometry(i.size, size, size, (size[0] / i.size[0], size[1] / i.size[1]), pixel_centre="half")
        for i in images
    ]
    return tensors, (geometry[0], geometry[1])


def postprocess_pair(
    tensors: Mapping[str, np.ndarray], geometry: tuple[ImageGeometry, ImageGeometry], settings: Settings
) -> Matches:
    """Matches chosen from the warp, with the warp itself."""
    sizes = geometry[0].original_size, geometry[1].original_size
    chosen = MatchSettings(
        sampling=settings.text("sampling"),
        top_k=settings.integer("top_k"),
        confidence=min(settings.number("confidence"), np.nextafter(1.0, 0.0)),
        mutual=settings.number("mutual_px") if settings.flag("mutual") else None,
        cell=settings.integer("cell"),
        seed=settings.integer("seed"),
        parity=settings.flag("parity"),
    )
    found = postprocess(tensors["warp"][0], tensors["certainty"][0], sizes, chosen)
    return Matches(
        keypoints0=found.keypoints0,
        keypoints1=found.keypoints1,
        scores=found.scores,
        size0=sizes[0],
        size1=sizes[1],
        warp=DenseWarp(warp=found.warp, certainty=found.certainty, size0=sizes[0], size1=sizes[1]),
    )
