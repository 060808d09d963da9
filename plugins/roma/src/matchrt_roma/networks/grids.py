"""Coordinates in RoMa's normalised frame: x and y in [-1, 1], -1 and 1 at the outer edges of the outermost pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def pixel_centres(height: int, width: int) -> Tensor:
    """Centres of all pixels, `(height, width, 2)` float32 as (x, y)."""
    ys = torch.linspace(-1 + 1 / height, 1 - 1 / height, height)
    xs = torch.linspace(-1 + 1 / width, 1 - 1 / width, width)
    return torch.stack((xs[None, :].expand(height, width), ys[:, None].expand(height, width)), dim=-1).contiguous()


def window_offsets(radius: int, height: int, width: int) -> Tensor:
    """Offsets of a square window in steps of one pixel of a `height` x `width` map, `(2r+1, 2r+1, 2)` as (x, y)."""
    ys = torch.linspace(-2 * radius / height, 2 * radius / height, 2 * radius + 1)
    xs = torch.linspace(-2 * radius / width, 2 * radius / width, 2 * radius + 1)
    side = 2 * radius + 1
    return torch.stack((xs[None, :].expand(side, side), ys[:, None].expand(side, side)), dim=-1).contiguous()


def swap_halves(stacked: Tensor) -> Tensor:
    """`[a; b]` along the batch becomes `[b; a]`."""
    half = stacked.shape[0] // 2
    return torch.cat((stacked[half:], stacked[:half]), dim=0)


def resize(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """`(B, C, h, w)` to `size`, bilinear between pixel centres, the ratio taken from the sizes."""
    return interpolate(tensor, size=size, mode="bilinear", align_corners=False)
