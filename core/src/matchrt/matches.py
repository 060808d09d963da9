"""What a matcher returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from matchrt.errors import UsageError

if TYPE_CHECKING:
    import os

    from matchrt.geometry.robust import RobustFit
    from matchrt.images.image import Image
    from matchrt.model import Size


@dataclass(frozen=True, kw_only=True)
class DenseWarp:
    """What a dense matcher knows of every pixel.

    `warp`: (D, H, W, 2) float32, where each pixel lies in the other image as (x, y), -1 and 1 at its outer edges; `certainty`: (D, H, W),
    0 to 1. Direction 0 is from image 0 to image 1; direction 1, where there is one, is back.
    """

    warp: np.ndarray
    certainty: np.ndarray
    size0: Size
    size1: Size

    def pixels(self, direction: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """For every pixel of the direction's first image, (h, w): its place in the other one, (h, w, 2) float32 (x, y) in pixels
        with centres at integers, and its certainty, (h, w) float32. Both are interpolated bilinearly."""
        from matchrt.images.resize import resize_bilinear

        here, there = (self.size0, self.size1) if direction == 0 else (self.size1, self.size0)
        fine = resize_bilinear(np.ascontiguousarray(self.warp[direction], np.float32), here)
        certainty = resize_bilinear(np.ascontiguousarray(self.certainty[direction], np.float32), here)
        extent = np.array([there[1], there[0]], np.float32)
        return (fine + 1) * (extent / 2) - np.float32(0.5), certainty


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Matches of one pair of images.

    `keypoints0`, `keypoints1`: (N, 2) float32, (x, y) in pixels of the original images, pixel centres at integers; row i of one matches
    row i of the other. `scores`: (N,) float32, higher is better. `indices`: (N, 2) int32 rows in the images' own keypoint lists, where the
    matcher has such lists (sparse family), with `all_keypoints0/1` as those lists. `warp` is what a dense matcher knows of every pixel.
    `notes` are sentences that a user must see: what this result may lack, and what to do about it.
    An image pair without matches gives arrays of shape (0, 2), (0, 2) and (0,).
    """

    keypoints0: np.ndarray
    keypoints1: np.ndarray
    scores: np.ndarray
    size0: Size
    size1: Size
    indices: np.ndarray | None = None
    all_keypoints0: np.ndarray | None = None
    all_keypoints1: np.ndarray | None = None
    warp: DenseWarp | None = field(default=None, repr=False, compare=False)
    matcher: str = ""
    backend: str = ""
    precision: str = ""
    random_weights: bool = False
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    images: tuple[Image, Image] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        count = len(self.scores)
        for name in ("keypoints0", "keypoints1"):
            array = getattr(self, name)
            if array.shape != (count, 2) or array.dtype != np.float32:
                raise ValueError(f"{name} must be float32 of shape ({count}, 2), got {array.dtype} {array.shape}")
        if self.scores.shape != (count,) or self.scores.dtype != np.float32:
            raise ValueError(f"scores must be float32 of shape (N,), got {self.scores.dtype} {self.scores.shape}")
        if self.indices is not None and self.indices.shape != (count, 2):
            raise ValueError(f"indices must have shape ({count}, 2), got {self.indices.shape}")

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Unpack as `keypoints0, keypoints1, scores = matches`."""
        return iter((self.keypoints0, self.keypoints1, self.scores))

    def above(self, threshold: float) -> Matches:
        """The matches whose score is above `threshold`."""
        return self.select(self.scores > threshold)

    def select(self, keep: np.ndarray) -> Matches:
        """The matches that `keep`, a boolean mask (N,) or an index array, names."""
        from dataclasses import replace

        return replace(
            self,
            keypoints0=self.keypoints0[keep],
            keypoints1=self.keypoints1[keep],
            scores=self.scores[keep],
            indices=None if self.indices is None else self.indices[keep],
        )

    def homography(self, threshold_px: float = 3.0, seed: int = 0) -> RobustFit:
        """The homography from image 0 to image 1 by MAGSAC++; `matrix` is None with fewer than 4 matches."""
        from matchrt.geometry.robust import find_homography

        return find_homography(self.keypoints0, self.keypoints1, threshold_px=threshold_px, seed=seed)

    def fundamental(self, threshold_px: float = 1.0, seed: int = 0) -> RobustFit:
        """The fundamental matrix (x1ᵀ F x0 = 0) by MAGSAC++; `matrix` is None with too few matches."""
        from matchrt.geometry.robust import find_fundamental

        return find_fundamental(self.keypoints0, self.keypoints1, threshold_px=threshold_px, seed=seed)

    def essential(self, K0: np.ndarray, K1: np.ndarray, threshold_px: float = 1.0, seed: int = 0) -> RobustFit:
        """The essential matrix for intrinsics `K0`, `K1` (3, 3); `matrix` is None with too few matches."""
        from matchrt.geometry.robust import find_essential

        return find_essential(self.keypoints0, self.keypoints1, K0, K1, threshold_px=threshold_px, seed=seed)

    def draw(
        self, path: str | os.PathLike[str] | None = None, inliers: np.ndarray | None = None, caption: str | None = None
    ) -> np.ndarray:
        """The pair side by side with its matches, (H, W, 3) uint8; written to `path` if given."""
        from matchrt.draw.matches import side_by_side

        if self.images is None:
            raise UsageError(
                "these matches carry no images, so they cannot be drawn",
                hint="matches read back from a file do not; call matchrt.draw.matches.side_by_side with the images",
            )
        return side_by_side(
            self.images[0].pixels,
            self.images[1].pixels,
            self.keypoints0,
            self.keypoints1,
            self.scores,
            inliers=inliers,
            caption=caption or self._caption(inliers),
            path=path,
        )

    def draw_warp(self, path: str | os.PathLike[str] | None = None) -> np.ndarray:
        """Image 1 laid over image 0 by the dense warp, (H, W, 3) uint8. Raises `UsageError` where there is no dense warp."""
        from matchrt.draw.dense import warp_overlay

        images, warp = self._dense("drawn as a warp")
        places, certainty = warp.pixels()
        return warp_overlay(images[0].pixels, images[1].pixels, places, certainty, path=path)

    def draw_certainty(self, path: str | os.PathLike[str] | None = None) -> np.ndarray:
        """The certainty as a heat map over image 0, (H, W, 3) uint8. Raises `UsageError` where there is no dense warp."""
        from matchrt.draw.dense import heat_map

        images, warp = self._dense("drawn as a heat map")
        return heat_map(images[0].pixels, warp.certainty[0], grey=True, legend="certainty", path=path)

    def _dense(self, what: str) -> tuple[tuple[Image, Image], DenseWarp]:
        if self.warp is None or self.images is None:
            raise UsageError(
                f"{self.matcher or 'these matches'} cannot be {what}: only a dense matcher's result has a warp"
            )
        return self.images, self.warp

    def _caption(self, inliers: np.ndarray | None) -> str:
        parts = ["RANDOM WEIGHTS, the matches mean nothing" if self.random_weights else "", self.matcher]
        parts.append(f"{len(self)} matches")
        if inliers is not None:
            parts.append(f"{int(np.count_nonzero(inliers))} inliers")
        parts.append(" ".join(p for p in (self.backend, self.precision) if p))
        return " · ".join(p for p in parts if p)

    def metadata(self) -> dict[str, Any]:
        """What is known besides the arrays, as JSON-able values."""
        return {
            "matcher": self.matcher,
            "backend": self.backend,
            "precision": self.precision,
            "random_weights": self.random_weights,
            "notes": list(self.notes),
            "size0": list(self.size0),
            "size1": list(self.size1),
            "image0": self.images[0].source if self.images else None,
            "image1": self.images[1].source if self.images else None,
            "coordinates": "(x, y) in pixels of the original image, pixel centres at integers",
        }

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        return {
            **self.metadata(),
            "keypoints0": self.keypoints0.tolist(),
            "keypoints1": self.keypoints1.tolist(),
            "scores": self.scores.tolist(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the matches; the suffix chooses the format (see `matchrt plugins`). Raises `UsageError` for an unknown suffix."""
        from matchrt.files.writers import write_matches

        write_matches(path, self)

    @classmethod
    def empty(cls, size0: Size, size1: Size, **other: Any) -> Matches:
        """No matches, in the right shapes and dtypes."""
        none = np.zeros((0, 2), np.float32)
        return cls(
            keypoints0=none, keypoints1=none.copy(), scores=np.zeros(0, np.float32), size0=size0, size1=size1, **other
        )
