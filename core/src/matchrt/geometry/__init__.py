"""Where network pixels lie in the original image, and homographies, fundamental and essential matrices from matches."""

from __future__ import annotations

from matchrt.geometry.robust import (
    RobustFit,
    corner_error,
    find_essential,
    find_fundamental,
    find_homography,
)
from matchrt.geometry.transform import ImageGeometry

__all__ = [
    "ImageGeometry",
    "RobustFit",
    "corner_error",
    "find_essential",
    "find_fundamental",
    "find_homography",
]
