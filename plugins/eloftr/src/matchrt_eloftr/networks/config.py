"""What fixes an EfficientLoFTR network and its graph: widths of the layers, and the settings frozen at export."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from matchrt.errors import UsageError

COARSE_STRIDE = 8
"""Pixels a side of one coarse cell."""

TOKEN_STRIDE = 32
"""Pixels a side of one attention token: the coarse stride times the aggregation of 4. Every size is a multiple of it."""

TOP_K_LIMIT = 3840
"""Largest K that TensorRT's TopK takes."""

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class Architecture:
    """Widths and depths (EfficientLoFTR, CVPR 2024; RepVGG-A1). The defaults are those of every published checkpoint.

    `dims` are the channels at 1/2, 1/4 and 1/8; `blocks` the RepVGG blocks at each; `layers` the (self, cross) pairs;
    `regress_channels` the last fine channels, kept for the second (sub-pixel) stage.
    """

    dims: tuple[int, int, int] = (64, 128, 256)
    blocks: tuple[int, int, int] = (2, 4, 14)
    layers: int = 4
    heads: int = 8
    regress_channels: int = 8

    def __post_init__(self) -> None:
        if self.dims[2] % (4 * self.heads):
            raise UsageError(f"coarse width {self.dims[2]} is not a multiple of 4 x {self.heads} heads")
        if not 0 < self.regress_channels < self.dims[0]:
            raise UsageError(f"regress_channels {self.regress_channels} is not between 1 and {self.dims[0] - 1}")


@dataclass(frozen=True)
class GraphSettings:
    """Everything that is constant in one graph. Sizes are (height, width) in pixels, multiples of 32.

    `score`: "dual-softmax" (variant full, MatchAnything) or "similarity" (variant opt: the raw similarity).
    `mutual`: keep a pair only if it is the best of its row and of its column (EfficientLoFTR); False keeps every pair above
    `score_floor`, up to `per_row` of them in a row (MatchAnything).
    `top_k`: slots returned, best score first; None returns every row (L0 x per_row slots, in row order) without TopK.
    `score_floor`: pairs at or below it are no candidates. 0 leaves the threshold to the caller; one-to-many needs a positive one.
    `valid`: "full" (no padding), "input" (two more inputs hold each image's valid height and width in pixels), or a pair of
    sizes frozen in the graph; the valid rectangle starts at the top left and is a multiple of 32 pixels.
    `smallest`: None for fixed sizes; else the graph takes every multiple of 32 from it up to `size0`, the same for both images,
    and reads the size from the images. That needs `valid` "input".
    `position_scale`: training size over test size, (rows, columns), for the rotary positions (upstream's NPE); 1 is off.
    `similarity_elements`: the largest piece of the similarity that is held at once, in elements per pair; `keep_elements`: up
    to this size the pieces are kept for the second pass, above it they are computed again.
    """

    size0: Size
    size1: Size
    score: Literal["dual-softmax", "similarity"] = "dual-softmax"
    mutual: bool = True
    per_row: int = 1
    top_k: int | None = 2048
    score_floor: float = 0.0
    valid: Literal["full", "input"] | tuple[Size, Size] = "full"
    smallest: Size | None = None
    border: int = 2
    temperature: float = 0.1
    position_scale: tuple[float, float] = (1.0, 1.0)
    similarity_elements: int = 1 << 27
    keep_elements: int = 1 << 25

    def __post_init__(self) -> None:
        _check_sizes(self)
        if self.smallest is not None:
            _check_dynamic(self, self.smallest)
        if self.top_k is not None and not 1 <= self.top_k <= TOP_K_LIMIT:
            raise UsageError(
                f"top_k {self.top_k} is not between 1 and {TOP_K_LIMIT}, the largest K of TensorRT's TopK",
                hint=f"choose at most {TOP_K_LIMIT}, or top_k none, which returns every row without TopK",
            )
        if self.per_row < 1 or (self.mutual and self.per_row != 1):
            raise UsageError(f"per_row {self.per_row}: a mutual match is one per row; one-to-many takes 1 or more")
        if not self.mutual and self.score_floor <= 0:
            raise UsageError("one-to-many matching needs a positive score_floor", hint="MatchAnything's own is 0.001")
        if not self.mutual and self.score == "similarity":
            raise UsageError("the raw similarity (variant opt) has no one-to-many mode")
        if self.border < 1:
            raise UsageError(f"border {self.border}: at least 1 cell is removed; the published matchers remove 2")

    @property
    def coarse0(self) -> Size:
        """Coarse cells (rows, columns) of the padded image 0."""
        return self.size0[0] // COARSE_STRIDE, self.size0[1] // COARSE_STRIDE

    @property
    def coarse1(self) -> Size:
        """Coarse cells (rows, columns) of the padded image 1."""
        return self.size1[0] // COARSE_STRIDE, self.size1[1] // COARSE_STRIDE

    @property
    def matched0(self) -> Size:
        """Coarse cells (rows, columns) of image 0 that are compared: the frozen valid rectangle, or all."""
        return self.coarse0 if isinstance(self.valid, str) else _cells(self.valid[0])

    @property
    def matched1(self) -> Size:
        """Coarse cells (rows, columns) of image 1 that are compared: the frozen valid rectangle, or all."""
        return self.coarse1 if isinstance(self.valid, str) else _cells(self.valid[1])

    @property
    def slots(self) -> int:
        """Length K of the outputs."""
        cells = self.matched0 if self.smallest is None else _cells(self.smallest)
        rows = cells[0] * cells[1] * self.per_row
        return rows if self.top_k is None else min(self.top_k, rows)


def _cells(size: Size) -> Size:
    return size[0] // COARSE_STRIDE, size[1] // COARSE_STRIDE


def _check_dynamic(settings: GraphSettings, smallest: Size) -> None:
    """Refuse what the form with dynamic sizes does not do."""
    if settings.size0 != settings.size1 or settings.valid != "input":
        raise UsageError("dynamic sizes need one range for both images, and valid rectangles as inputs")
    if smallest[0] > settings.size0[0] or smallest[1] > settings.size0[1]:
        raise UsageError(
            f"the smallest size, {smallest[0]}x{smallest[1]}, is above {settings.size0[0]}x{settings.size0[1]}"
        )
    rows = math.prod(_cells(smallest)) * settings.per_row
    if settings.top_k is None or settings.top_k > rows:
        raise UsageError(
            f"slots {'none' if settings.top_k is None else settings.top_k}: with dynamic sizes the number of slots is fixed, "
            f"and {smallest[0]}x{smallest[1]} has {rows}",
            hint=f"choose at most {min(rows, TOP_K_LIMIT)}, or a fixed size",
        )


def _check_sizes(settings: GraphSettings) -> None:
    """Refuse sizes that the network cannot take, and valid rectangles outside their image."""
    sizes = {"size0": settings.size0, "size1": settings.size1}
    if settings.smallest is not None:
        sizes["smallest"] = settings.smallest
    if not isinstance(settings.valid, str):
        sizes |= {"valid of image 0": settings.valid[0], "valid of image 1": settings.valid[1]}
    for name, (height, width) in sizes.items():
        if min(height, width) < TOKEN_STRIDE:
            raise UsageError(f"{name} is {height}x{width}; the smallest side is {TOKEN_STRIDE} pixels")
        if height % TOKEN_STRIDE or width % TOKEN_STRIDE:
            raise UsageError(
                f"{name} is {height}x{width}, not divisible by {TOKEN_STRIDE}",
                hint=f"use {height // TOKEN_STRIDE * TOKEN_STRIDE}x{width // TOKEN_STRIDE * TOKEN_STRIDE}",
            )
    if not isinstance(settings.valid, str):
        for number, (outer, inner) in enumerate(zip((settings.size0, settings.size1), settings.valid, strict=True)):
            if inner[0] > outer[0] or inner[1] > outer[1]:
                raise UsageError(
                    f"valid rectangle {inner[0]}x{inner[1]} of image {number} is larger than {outer[0]}x{outer[1]}"
                )
