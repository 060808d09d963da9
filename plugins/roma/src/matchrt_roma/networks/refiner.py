"""One scale's refiner (RoMa, section 3.4): depthwise convolutions over both features, displacement and correlation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from matchrt_roma.networks.grids import pixel_centres, resize, window_offsets
from matchrt_roma.networks.local_correlation import WindowCorrelation, from_volume, volume_fits

VOLUME_LIMIT = 600 * 2**20
"""A direction's correlation volume above this many bytes of float32 is not made: scale 8 has 92 MiB at 560 and 519 MiB at 864, scale 4
has 1.4 GiB at 560. Where it fits it was the faster form on a GPU."""
KERNEL = 5


def _block(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
    )


class Refiner(nn.Module):
    """Predicts a displacement and a certainty change for every pixel of one scale.

    `channels` is the width of the input and of all blocks: query, sampled support, displacement embedding, window.
    """

    def __init__(self, channels: int, displacement: int, radius: int, hidden_blocks: int) -> None:
        super().__init__()
        self.radius = radius
        self.correlation = WindowCorrelation(radius)
        self.block1 = _block(channels)
        self.hidden_blocks = nn.Sequential(*(_block(channels) for _ in range(hidden_blocks)))
        self.out_conv = nn.Conv2d(channels, 3, 1)
        self.disp_emb = nn.Conv2d(2, displacement, 1)

    def forward(self, query: Tensor, support: Tensor, grid: Tensor, displacement: Tensor, offsets: Tensor) -> Tensor:
        """Features `(B, C, h, w)` and flow `grid` `(B, h, w, 2)` to `(B, 3, h, w)`: dx, dy, certainty change.

        `displacement` `(B, 2, h, w)` is embedded; `offsets` `(2r+1, 2r+1, 2)` is the window (unused for r = 0).
        """
        sampled = grid_sample(support, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        inputs = [query, sampled, self.disp_emb(displacement)]
        if self.radius:
            height, width = query.shape[-2:]
            if volume_fits(height, width, VOLUME_LIMIT):
                inputs.append(from_volume(query, support, grid, offsets))
            else:
                inputs.append(self.correlation(query, support, grid))
        out: Tensor = self.out_conv(self.hidden_blocks(self.block1(torch.cat(inputs, dim=1))).float())
        return out


class RefineStage(nn.Module):
    """A refiner at one size: references it and holds the constants of that size.

    `map_size` is the size of the maps at this `scale`, `full_size` the size at scale 1 of the same pass, `factor` the
    scale of the displacement's embedding (see `RomaSettings`). A refiner's dx, dy count quarter pixels of its own
    scale.
    """

    centres: Tensor
    offsets: Tensor
    unit: Tensor

    def __init__(
        self, refiner: Refiner, scale: int, map_size: tuple[int, int], full_size: tuple[int, int], factor: float
    ) -> None:
        super().__init__()
        self.refiner = refiner
        self.map_size = map_size
        self.factor = 40 / 32 * factor
        unit = torch.tensor([scale / (4.0 * full_size[1]), scale / (4.0 * full_size[0])]).reshape(1, 2, 1, 1)
        self.register_buffer("centres", pixel_centres(*map_size).permute(2, 0, 1)[None].contiguous(), persistent=False)
        self.register_buffer("offsets", window_offsets(refiner.radius, *map_size), persistent=False)
        self.register_buffer("unit", unit, persistent=False)

    def forward(self, query: Tensor, support: Tensor, flow: Tensor, certainty: Tensor) -> tuple[Tensor, Tensor]:
        """One update of flow `(B, 2, h, w)` and certainty logits `(B, 1, h, w)`, both resized to this map first."""
        if flow.shape[-2:] != self.map_size:
            flow, certainty = resize(flow, self.map_size), resize(certainty, self.map_size)
        displacement = self.factor * (flow - self.centres)
        delta = self.refiner(query, support, flow.permute(0, 2, 3, 1), displacement, self.offsets)
        return flow + delta[:, :2] * self.unit, certainty + delta[:, 2:]
