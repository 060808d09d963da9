"""Correlation of each query feature with a window around its match (RoMa, section 3.4), without a loop over pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


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


def from_rows(query: Tensor, support: Tensor, flow: Tensor, offsets: Tensor) -> Tensor:
    """The same, sampling the support once per row of the window: memory is C*h*w*k floats a pair.

    For maps whose volume would be too large. Arguments and result as `from_volume`.
    """
    batch, channels, height, width = query.shape
    side = offsets.shape[0]
    scaled = (query / channels**0.5)[..., None]
    planes = []
    for row in range(side):
        grid = (flow[:, :, :, None, :] + offsets[row]).reshape(batch, height, width * side, 2)
        sampled = grid_sample(support, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        planes.append((scaled * sampled.reshape(batch, channels, height, width, side)).sum(dim=1))
    return torch.cat(planes, dim=-1).permute(0, 3, 1, 2)


def volume_fits(height: int, width: int, limit_bytes: int) -> bool:
    """Whether one direction's float32 volume of a map stays below `limit_bytes`."""
    return (height * width) ** 2 * 4 <= limit_bytes
