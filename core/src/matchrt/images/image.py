"""The decoded image that every matcher starts from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UInt8Array = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Image:
    """Eight-bit pixels and how they came about.

    `pixels` is uint8, read-only and C-contiguous: (H, W, 3) in RGB order, or (H, W) where the source was grey.
    `source` is the path or a short description. `orientation` is the EXIF orientation found (1 to 8, 1 when there is
    none) and `oriented` says whether it was applied. Keypoints refer to these pixels, so for a photograph taken upright
    they refer to the picture as people see it. `notes` lists everything that decoding changed or left out.
    """

    pixels: UInt8Array
    source: str
    orientation: int = 1
    oriented: bool = False
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of `pixels`."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])

    @property
    def is_grey(self) -> bool:
        """Whether `pixels` has no colour axis."""
        return self.pixels.ndim == 2

    def rgb(self) -> UInt8Array:
        """The pixels as (H, W, 3); a grey image repeats its channel, as `cv2.imread` does for a grey file."""
        return np.repeat(self.pixels[..., None], 3, axis=2) if self.is_grey else self.pixels
