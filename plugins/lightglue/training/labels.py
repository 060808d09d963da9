"""Detector targets: points into 8x8 cells, and homographic adaptation (SuperPoint, section 5)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from canvases import Canvases, uniform
from torch import Tensor
from views import change_light, homographies, look, transform

from matchrt_lightglue.networks import SuperPoint
from matchrt_lightglue.networks.selection import local_maxima

CELL = 8
IGNORED = -100


def cell_targets(points: Tensor, scores: Tensor, inside: Tensor) -> Tensor:
    """Classes (B, h, w) int64 of each 8x8 cell: the pixel 0 to 63 of its best point, 64 for none, -100 for unseen.

    `points` (B, P, 2) and `scores` (B, P) in the view; `inside` (B, 1, H, W) is where the view sees the canvas.
    """
    batch, _, height, width = inside.shape
    rows, columns = height // CELL, width // CELL
    pixel = (points + 0.5).floor()
    x, y = pixel.unbind(-1)
    valid = (scores > 0) & (x >= 0) & (y >= 0) & (x < columns * CELL) & (y < rows * CELL)
    x, y = (torch.where(valid, t, 0).long() for t in (x, y))
    cell = torch.where(valid, y // CELL * columns + x // CELL, rows * columns)
    # Rank and pixel in one number, so that one maximum settles cells with several points.
    rank = (scores.clamp(0, 1) * 2**20).long()
    packed = rank * 64 + (y % CELL) * CELL + x % CELL
    best = torch.full((batch, rows * columns + 1), -1, device=points.device, dtype=torch.int64)
    best = best.scatter_reduce(1, cell, packed, "amax")[:, :-1].reshape(batch, rows, columns)
    whole = -F.max_pool2d(-inside.float(), CELL).squeeze(1) > 0.5
    return torch.where(whole, torch.where(best >= 0, best % 64, 64), IGNORED)


@torch.no_grad()
def adapt(
    network: SuperPoint, images: Tensor, settings: dict[str, Any], limits: dict[str, float], generator: torch.Generator
) -> Canvases:
    """Label canvases (N, S, S) uint8 with points that the detector finds again and again under homographies."""
    points, scores = [], []
    for chunk in images.split(settings["batch"]):
        clear = stretch_contrast(chunk.float() / 255)
        heat = _aggregate(network, clear, settings["warps"], limits, generator)
        xy, score = strongest(heat, settings["points"], settings["threshold"])
        points.append(refine(clear, xy))
        scores.append(score)
    return Canvases(images, torch.cat(points), torch.cat(scores))


def _aggregate(
    network: SuperPoint, images: Tensor, warps: int, limits: dict[str, float], generator: torch.Generator
) -> Tensor:
    """Mean detection probability (B, S, S) over the canvas itself and random views of it."""
    batch, size = len(images), images.shape[-1]
    total = _heat(network, images.unsqueeze(1))
    seen = torch.ones_like(total)
    for _ in range(warps):
        turn = uniform(generator, -0.9, 0.9, batch)
        scale = torch.exp(uniform(generator, -0.4, 0.4, batch))
        centre = size * uniform(generator, 0.35, 0.65, batch, 2)
        H = homographies(turn, scale, centre, (size, size), limits, generator)
        view, inside = look(images, H, (size, size))
        heat = _heat(network, change_light(view, generator, 0.6)) * inside.squeeze(1)
        # Back to the canvas: the canvas is a view of the view, through the inverse.
        grid = transform(H, _grid(size, H.device)) / (size - 1) * 2 - 1
        both = torch.stack((heat, inside.squeeze(1).float()), 1)
        back = F.grid_sample(both, grid.reshape(batch, size, size, 2), align_corners=True)
        total += back[:, 0]
        seen += back[:, 1]
    return total / seen.clamp_min(1.0)


def _grid(size: int, device: torch.device) -> Tensor:
    axis = torch.arange(size, device=device, dtype=torch.float32)
    return torch.stack((axis.repeat(size), axis.repeat_interleave(size)), -1).unsqueeze(0)


def _heat(network: SuperPoint, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16):
        return network.forward_dense(images).scores.float()


def strongest(heat: Tensor, count: int, threshold: float) -> tuple[Tensor, Tensor]:
    """Best maxima of `heat` (B, S, S) to a fraction of a pixel: points (B, count, 2) and scores, 0 for none."""
    batch, height, width = heat.shape
    inside = F.pad(torch.ones_like(heat[:, 4:-4, 4:-4], dtype=torch.bool), (4, 4, 4, 4))
    keep = local_maxima(heat, inside, 4) & (heat > threshold)
    score, index = torch.where(keep, heat, 0.0).flatten(1).topk(count, dim=1)
    x, y = index % width, index // width
    batch_index = torch.arange(batch, device=heat.device).unsqueeze(1)

    def value(dx: int, dy: int) -> Tensor:
        return heat[batch_index, (y + dy).clamp(0, height - 1), (x + dx).clamp(0, width - 1)]

    # Centre of mass of the 3x3 window: the aggregated peaks are smooth.
    window = [(dx, dy, value(dx, dy)) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    mass = sum(v for _, _, v in window).clamp_min(1e-9)
    shift_x, shift_y = sum(dx * v for dx, _, v in window) / mass, sum(dy * v for _, dy, v in window) / mass
    return torch.stack((x + shift_x, y + shift_y), -1).float(), score


def stretch_contrast(images: Tensor) -> Tensor:
    """Map each image's 1st to 99th percentile to [0, 1], so that faint canvases get labels too."""
    sample = images.flatten(1)[:, ::17]
    low, high = sample.quantile(0.01, dim=1), sample.quantile(0.99, dim=1)
    scale = (high - low).clamp_min(0.08)
    return ((images - low[:, None, None]) / scale[:, None, None]).clamp(0, 1)


def refine(images: Tensor, points: Tensor, radius: int = 3, limit: float = 2.0) -> Tensor:
    """Move points (B, P, 2) to where the image's (B, S, S) edges nearby cross (Förstner and Gülch, 1987).

    Points whose surroundings hold no crossing, or one further than `limit` pixels away, stay.
    """
    axis = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    offset = torch.stack((axis.repeat(len(axis)), axis.repeat_interleave(len(axis))), -1)
    weight = torch.exp(-offset.square().sum(-1) / (2 * 1.7**2))
    smooth = torch.tensor([0.25, 0.5, 0.25], device=images.device)
    x = F.pad(images.unsqueeze(1), (2, 2, 2, 2), mode="replicate")
    x = F.conv2d(F.conv2d(x, smooth.reshape(1, 1, 1, 3)), smooth.reshape(1, 1, 3, 1))
    gradient = torch.cat((x[..., 1:-1, 2:] - x[..., 1:-1, :-2], x[..., 2:, 1:-1] - x[..., :-2, 1:-1]), 1)
    moved = points
    for _ in range(3):
        place = (moved.unsqueeze(2) + offset) / (images.shape[-1] - 1) * 2 - 1
        gx, gy = F.grid_sample(gradient, place, align_corners=True).unbind(1)
        xx, xy, yy = (weight * gx * gx).sum(-1), (weight * gx * gy).sum(-1), (weight * gy * gy).sum(-1)
        along = gx * offset[:, 0] + gy * offset[:, 1]
        bx, by = (weight * gx * along).sum(-1), (weight * gy * along).sum(-1)
        determinant, trace = xx * yy - xy * xy, xx + yy
        step = torch.stack((yy * bx - xy * by, xx * by - xy * bx), -1) / determinant.clamp_min(1e-12).unsqueeze(-1)
        crossing = (determinant > 0.04 * trace.square()) & (trace > 1e-4)
        target = moved + step.clamp(-1.5, 1.5)
        near = (target - points).norm(dim=-1) < limit
        moved = torch.where((crossing & near).unsqueeze(-1), target, moved)
    return moved
