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


def merge(pairs: Tensor) -> Tensor:
    """`(B, K, ...)` to `(B*K, ...)`."""
    return pairs.reshape(-1, *pairs.shape[2:])


def unmerge(flat: Tensor, count: int) -> Tensor:
    """`(B*K, ...)` back to `(B, K, ...)` for K = `count`."""
    return flat.reshape(-1, count, *flat.shape[1:])


def query_and_support(maps: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Both images' maps `(B, 2, C, h, w)` to the query's and the support's for every direction, `(B*D, C, h, w)` each.

    Direction 0 looks from image 0 into image 1; with `symmetric` direction 1 looks back (D = 2, otherwise 1).
    """
    first, second = maps[:, :1], maps[:, 1:]
    if symmetric:
        return merge(maps), merge(torch.cat((second, first), dim=1))
    return merge(first), merge(second)


def resize(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """`(B, C, h, w)` to `size`, bilinear between pixel centres, the ratio taken from the sizes."""
    return interpolate(tensor, size=size, mode="bilinear", align_corners=False)
