"""What can be chosen about RoMa: the architecture's numbers and the settings of one bundle. Torch-free."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from matchrt.errors import UsageError

SCALES = (16, 8, 4, 2, 1)
VARIANTS = ("full", "coarse", "encoder-gp")
RECIPES = ("matchanything", "upstream")
TRAINING_SIZE = 560
PATCH = 14


@dataclass(frozen=True)
class RomaConfig:
    """The architecture's numbers; the defaults are the published RoMa (Edstedt et al., CVPR 2024, section 3).

    `widths` are the channels of VGG19's stages at strides 1, 2, 4, 8; `projected` the channels after the projection of
    each scale; `displacement` the channels of each refiner's displacement embedding; `radius` its window (0: none).
    """

    vit_dim: int = 1024
    vit_depth: int = 24
    vit_heads: int = 16
    vit_grid: int = 37
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    projected: dict[int, int] = field(default_factory=lambda: {16: 512, 8: 512, 4: 256, 2: 64, 1: 9})
    displacement: dict[int, int] = field(default_factory=lambda: {16: 128, 8: 64, 4: 32, 2: 16, 1: 6})
    radius: dict[int, int] = field(default_factory=lambda: {16: 7, 8: 3, 4: 2, 2: 0, 1: 0})
    hidden_blocks: int = 8
    gp_dim: int = 512
    decoder_depth: int = 5
    decoder_heads: int = 8
    anchors: int = 64
    kernel_temperature: float = 0.2
    noise: float = 0.1

    @property
    def decoder_dim(self) -> int:
        """Channels of a decoder token: the Gaussian process' mean, then the projected feature."""
        return self.gp_dim + self.projected[16]

    def refiner_channels(self, scale: int) -> int:
        """Input (and hidden) channels of the refiner of one scale."""
        window = (2 * self.radius[scale] + 1) ** 2 if self.radius[scale] else 0
        return 2 * self.projected[scale] + self.displacement[scale] + window


@dataclass(frozen=True)
class RomaSettings:
    """The settings of one bundle. Sizes are (height, width).

    `size` is the coarse pass's resolution (multiples of 14), `upsample_size` the upsampling pass's (multiples of 8;
    None leaves that pass out). `recipe` decides how the refiners scale displacements: `matchanything` takes the coarse
    size as the unit, `upstream` always 560. `leaf` is the largest block that the Gaussian process inverts at once.

    Raises `UsageError` for a size that the network cannot take, an unknown variant or an unknown recipe.
    """

    variant: str = "full"
    recipe: str = "matchanything"
    size: tuple[int, int] = (560, 560)
    upsample_size: tuple[int, int] | None = (864, 864)
    symmetric: bool = True
    attenuate: bool = True
    leaf: int = 200

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise UsageError(f"unknown variant {self.variant!r} of RoMa", hint=f"one of: {', '.join(VARIANTS)}")
        if self.recipe not in RECIPES:
            raise UsageError(f"unknown recipe {self.recipe!r} of RoMa", hint=f"one of: {', '.join(RECIPES)}")
        _check_multiple(self.size, PATCH, "coarse size", "DINOv2's patches are 14 pixels wide")
        if self.upsample_size is not None:
            _check_multiple(self.upsample_size, 8, "upsampling size", "the pass starts at stride 8")
        if self.leaf < 2:
            raise UsageError(f"leaf {self.leaf} is too small for the Gaussian process", hint="give at least 2")

    @property
    def upsamples(self) -> bool:
        """Whether the upsampling pass runs."""
        return self.variant == "full" and self.upsample_size is not None

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of the coarse pass, (rows, columns)."""
        return self.size[0] // PATCH, self.size[1] // PATCH

    def map_size(self, scale: int) -> tuple[int, int]:
        """Size of the coarse pass's feature map at `scale` ("16" is DINOv2's grid, stride 14 in truth)."""
        return self.grid if scale == 16 else (self.size[0] // scale, self.size[1] // scale)

    def upsample_map_size(self, scale: int) -> tuple[int, int]:
        """Size of the upsampling pass's feature map at `scale`. Raises `UsageError` when that pass is left out."""
        if self.upsample_size is None:
            raise UsageError("this bundle has no upsampling pass", hint="give an upsampling size")
        return self.upsample_size[0] // scale, self.upsample_size[1] // scale

    @property
    def output_size(self) -> tuple[int, int]:
        """Size of the dense warp and certainty that the engine returns."""
        if self.variant == "encoder-gp":
            return self.grid
        if self.variant == "coarse":
            return self.map_size(8)
        return self.upsample_size if self.upsample_size is not None else self.size

    @property
    def coarse_factor(self) -> float:
        """Displacement scale of the coarse pass's refiners."""
        return 1.0 if self.recipe == "matchanything" else math.sqrt(self.size[0] * self.size[1]) / TRAINING_SIZE

    @property
    def upsample_factor(self) -> float:
        """Displacement scale of the upsampling pass's refiners."""
        height, width = self.upsample_map_size(1)
        unit = math.sqrt(self.size[0] * self.size[1]) if self.recipe == "matchanything" else float(TRAINING_SIZE)
        return math.sqrt(height * width) / unit


def _check_multiple(size: tuple[int, int], divisor: int, what: str, why: str) -> None:
    if min(size) < divisor or size[0] % divisor or size[1] % divisor:
        near = tuple(max(divisor, round(side / divisor) * divisor) for side in size)
        raise UsageError(
            f"{what} {size[0]}x{size[1]} is not a multiple of {divisor} ({why})", hint=f"nearest: {near[0]}x{near[1]}"
        )
