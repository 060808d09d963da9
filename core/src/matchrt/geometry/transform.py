"""The map between the pixels of an original image and those of a network's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from matchrt.errors import UsageError

Size = tuple[int, int]
PixelCentre = Literal["integer", "half"]
"""What a network calls the centre of its first pixel: (0, 0) for "integer", (0.5, 0.5) for "half" (RoMa)."""


@dataclass(frozen=True)
class ImageGeometry:
    """How one image was laid into a network's input, and the way back for its keypoints.

    Sizes are (height, width). The resized image fills `valid_size` pixels of the input, its first pixel at `offset`
    (y, x); the rest is padding. `scale` is (sy, sx), network pixels for each original pixel. Points are (x, y).
    Original points always have pixel centres at integers; `pixel_centre` says where the network has them. With p in
    the network, first shifted to integer centres, and o in the original: o = (p - offset + 0.5) / scale - 0.5.
    """

    original_size: Size
    network_size: Size
    valid_size: Size
    scale: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)
    pixel_centre: PixelCentre = "integer"

    def __post_init__(self) -> None:
        for name in ("original_size", "network_size", "valid_size"):
            size = getattr(self, name)
            if len(size) != 2 or min(size) < 1:
                raise UsageError(f"{name} is (height, width), both at least 1; got {size}")
        if not all(np.isfinite(s) and s > 0 for s in self.scale):
            raise UsageError(f"scale is (sy, sx), both above 0; got {self.scale}")
        fits = all(
            o >= 0 and v + o <= n for v, o, n in zip(self.valid_size, self.offset, self.network_size, strict=True)
        )
        if not fits:
            raise UsageError(
                f"a valid size of {self.valid_size} at {self.offset} does not fit an input of {self.network_size}"
            )
        if self.pixel_centre not in ("integer", "half"):
            raise UsageError(f'pixel_centre is "integer" or "half"; got {self.pixel_centre!r}')

    @classmethod
    def from_resize(
        cls,
        original_size: Size,
        valid_size: Size,
        network_size: Size | None = None,
        *,
        offset: tuple[float, float] = (0.0, 0.0),
        pixel_centre: PixelCentre = "integer",
    ) -> ImageGeometry:
        """The geometry of an image resized to `valid_size` and padded to `network_size` (default: no padding)."""
        scale = valid_size[0] / original_size[0], valid_size[1] / original_size[1]
        return cls(original_size, network_size or valid_size, valid_size, scale, offset, pixel_centre)

    def to_original(self, points: NDArray[Any]) -> NDArray[Any]:
        """Network points (N, 2) as (x, y) to original pixels (N, 2).

        Computed in float64; float64 points stay float64, all others become float32.
        """
        scale, offset, half = self._per_axis()
        return _like(points, (_checked(points) - half - offset + 0.5) / scale - 0.5)

    def to_network(self, points: NDArray[Any]) -> NDArray[Any]:
        """Original points (N, 2) as (x, y) to network pixels (N, 2); the inverse of `to_original`, same dtypes."""
        scale, offset, half = self._per_axis()
        return _like(points, (_checked(points) + 0.5) * scale - 0.5 + offset + half)

    def inside_original(self, points: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of the original points (N, 2) lie on the image's area, edges included: bool (N,)."""
        values = _checked(points)
        limit = np.array([self.original_size[1], self.original_size[0]], dtype=np.float64) - 0.5
        return np.asarray(((values >= -0.5) & (values <= limit)).all(axis=1))

    def _per_axis(self) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Scale and offset in (x, y) order, and the shift of the network's pixel centres."""
        scale = np.array(self.scale[::-1], dtype=np.float64)
        offset = np.array(self.offset[::-1], dtype=np.float64)
        return scale, offset, 0.5 if self.pixel_centre == "half" else 0.0


def _checked(points: NDArray[Any]) -> NDArray[np.float64]:
    if points.ndim != 2 or points.shape[1] != 2:
        raise UsageError(f"points are (N, 2) as (x, y); got shape {points.shape}")
    return points.astype(np.float64)


def _like(points: NDArray[Any], values: NDArray[np.float64]) -> NDArray[Any]:
    return values if points.dtype == np.float64 else values.astype(np.float32)
