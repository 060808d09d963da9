"""Tensors to matches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from matchrt.geometry.transform import ImageGeometry
from matchrt.matches import Matches
from matchrt.model import Settings


def postprocess_pair(
    tensors: Mapping[str, np.ndarray], geometry: tuple[ImageGeometry, ImageGeometry], settings: Settings
) -> Matches:
    """Matches above `threshold`. The extractor's keypoints are in pixels of the original images already."""
    matches, scores = tensors["matches0"][0], tensors["scores0"][0]
    count0, count1 = int(tensors["count0"][0]), int(tensors["count1"][0])
    rows = np.flatnonzero((matches[:count0] >= 0) & (scores[:count0] > settings.number("threshold")))
    partners = matches[rows]
    return Matches(
        keypoints0=tensors["keypoints0"][0, rows],
        keypoints1=tensors["keypoints1"][0, partners],
        scores=scores[rows],
        size0=geometry[0].original_size,
        size1=geometry[1].original_size,
        indices=np.stack([rows, partners], axis=1).astype(np.int32),
        all_keypoints0=tensors["keypoints0"][0, :count0],
        all_keypoints1=tensors["keypoints1"][0, :count1],
    )
