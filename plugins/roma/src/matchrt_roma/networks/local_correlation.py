"""Correlation of each query feature with a window around its match (RoMa, section 3.4), without a loop over pixels."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, grid_sample, pad


def from_volume(query: Tensor, support: Tensor, flow: Tensor, offsets: Tensor) -> Tensor:
    """By the volume of all products, sampled bilinearly: the sum over channels commutes with bilinear sampling.

    `query` `(B, C, h, w)`, `support` `(B, C, h2, w2)`, `flow` `(B, h, w, 2)` in [-1, 1], `offsets` `(k, k, 2)`.
    Returns `(B, k*k, h, w)`, products divided by √C; zeros outside the support. Memory is h*w*h2*w2 floats a pair.
    """
    batch, channels, height, width = query.shape
    rows, columns = support.shape[-2:]
    side = offsets.shape[0]
    scaled = query.flatten(2).transpose(1, 2) / channels**0.5
    volume = (scaled @ support.flatten(2)).reshape(batch * height * width, 1, rows, columns)
    grid = flow.reshape(batch * height * width, 1, 1, 2) + offsets
    sampled = grid_sample(volume, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.reshape(batch, height * width, side * side).transpose(1, 2).reshape(batch, -1, height, width)


class WindowCorrelation(nn.Module):
    """The same for a window of one-pixel steps: all its places share one fraction of a pixel, so that products with whole pixels are
    enough, (2r+2)² of them for (2r+1)² places, and four of them are blended for each place.

    Reads rows of C numbers, which GPUs do at full width, where sampling reads four numbers for each channel and place. Memory is
    C*h*w*(2r+2) floats a pair: for maps whose volume would be too large.
    """

    def __init__(self, radius: int) -> None:
        super().__init__()
        self.places = WindowPlaces(radius)

    def forward(self, query: Tensor, support: Tensor, flow: Tensor) -> Tensor:
        """Arguments and result as `from_volume`, with the window of `radius` in steps of one pixel of the support."""
        batch, channels, height, width = query.shape
        side = self.places.side
        places, down, across = self.places(flow, support)
        table = pad(support, (side,) * 4).permute(0, 2, 3, 1).reshape(-1, channels)
        padded_width = support.shape[-1] + 2 * side
        scaled = query.permute(0, 2, 3, 1).reshape(-1, 1, channels) / channels**0.5
        steps = torch.arange(side, dtype=torch.int32, device=flow.device)
        lines = []
        for line in range(side):
            rows = embedding(places.reshape(-1, 1) + (steps + line * padded_width), table)
            lines.append((rows * scaled).sum(-1).reshape(batch, height, width, side))
        found = [a + (b - a) * down for a, b in pairwise(lines)]
        blended = [x[..., :-1] + (x[..., 1:] - x[..., :-1]) * across for x in found]
        return torch.cat(blended, dim=-1).permute(0, 3, 1, 2)


class WindowPlaces(nn.Module):
    """Where windows lie in a map padded by 2r+2 zeros all around. A module, so that its nodes have a name for precision rules."""

    def __init__(self, radius: int) -> None:
        super().__init__()
        self.radius, self.side = radius, 2 * radius + 2

    def forward(self, flow: Tensor, support: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First whole pixel of each window, `(B, h, w)` int32 into the padded maps' flattened pixels, and the fractions of a pixel
        down and across, `(B, h, w, 1)`. A window that sees nothing of the map begins in the padding.
        """
        batch, _, rows, columns = support.shape
        starts, fractions = [], []
        for axis, count in ((1, rows), (0, columns)):
            position = (flow[..., axis] + 1.0) * (count / 2.0) - 0.5
            whole = position.floor()
            fractions.append((position - whole)[..., None])
            starts.append((whole + float(self.side - self.radius)).clamp(0.0, float(count + self.side)))
        height, width = rows + 2 * self.side, columns + 2 * self.side
        places = (starts[0] * float(width) + starts[1]).to(torch.int32)
        if not isinstance(batch, int) or batch > 1:  # while a graph is traced, a dynamic batch is a symbol
            first = torch.arange(batch, dtype=torch.int32, device=flow.device) * (height * width)
            places = places + first.reshape(batch, 1, 1)
        return places, fractions[0], fractions[1]


def volume_fits(height: int, width: int, limit_bytes: int) -> bool:
    """Whether one direction's float32 volume of a map stays below `limit_bytes`."""
    return (height * width) ** 2 * 4 <= limit_bytes
