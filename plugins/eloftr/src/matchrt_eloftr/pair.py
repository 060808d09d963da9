"""Preprocessing and postprocessing of one pair in core's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from matchrt.errors import UsageError
from matchrt.geometry.transform import ImageGeometry
from matchrt.images.image import Image
from matchrt.matches import Matches
from matchrt.model import Settings
from matchrt.settings import format_value
from matchrt_eloftr.postprocess import finish_pair
from matchrt_eloftr.preprocess import Prepared, Recipe, RecipeName, prepare_pair


def recipe_of(settings: Settings) -> Recipe:
    """The preprocessing recipe that the settings choose. Raises `UsageError` for a size that it, or the graph, cannot take."""
    size, wanted = settings.size("size"), settings.size("input_size")
    assert size is not None
    if wanted not in (None, size) and not settings.flag("dynamic"):
        raise UsageError(
            f"input_size {format_value(wanted)}: this bundle takes {format_value(size)} only",
            hint="convert again with --set dynamic=true, or with that --size",
        )
    size = wanted or size
    return Recipe(cast(RecipeName, settings.text("recipe")), size)


def preprocess_pair(
    images: tuple[Image, Image], settings: Settings
) -> tuple[dict[str, np.ndarray], tuple[ImageGeometry, ImageGeometry]]:
    """Tensors image0, image1, valid0, valid1, and the geometry of both images."""
    tensors, prepared = prepare_pair([image.pixels for image in images], recipe_of(settings))
    return tensors, (_Geometry.of(prepared[0]), _Geometry.of(prepared[1]))


def postprocess_pair(
    tensors: Mapping[str, np.ndarray], geometry: tuple[ImageGeometry, ImageGeometry], settings: Settings
) -> Matches:
    """Matches above `threshold`, scaled back by the recipe's own arithmetic; a truncated result says so in its notes."""
    mutual = settings.flag("mutual")
    prepared = tuple(cast(_Geometry, g).prepared for g in geometry)
    found = finish_pair(
        tensors,
        (prepared[0], prepared[1]),
        settings.number("threshold"),
        score_floor=settings.number("score_floor"),
        per_row=None if mutual else settings.integer("per_row"),
    )
    notes: tuple[str, ...] = ()
    if found.truncated:
        notes = (
            f"the graph found {found.candidates} candidates and returned {len(found.scores)}: matches above the threshold "
            f"may be missing; convert with more slots{'' if mutual else ' or per_row'}",
        )
    return Matches(
        keypoints0=found.keypoints0,
        keypoints1=found.keypoints1,
        scores=found.scores,
        size0=geometry[0].original_size,
        size1=geometry[1].original_size,
        notes=notes,
    )


class _Geometry(ImageGeometry):
    """An image's geometry with the recipe's own record, whose arithmetic is followed to the bit."""

    prepared: Prepared

    @classmethod
    def of(cls, prepared: Prepared) -> _Geometry:
        scale = tuple(1.0 / (f * s) for f, s in zip(prepared.refit, prepared.scale, strict=True))
        size = prepared.tensor.shape[2], prepared.tensor.shape[3]
        geometry = cls(prepared.original, size, prepared.valid, (scale[1], scale[0]))
        object.__setattr__(geometry, "prepared", prepared)
        return geometry
