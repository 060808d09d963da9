"""Keypoints from a score map: suppression of what is not a maximum, and choice of the best, with fixed shapes throughout."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 8
"""Side of one cell in pixels: three 2x2 poolings. The best pixels are looked for by cells first."""

BLOCK = 4
"""Side of the blocks that a cell splits into, among which they are looked for next."""

PIXELS, QUARTERS = BLOCK * BLOCK, (CELL // BLOCK) ** 2
LANE = 64
"""Numbers that are summed up at once."""


def local_maxima(scores: Tensor, inside: Tensor, radius: int) -> Tensor:
    """Mask of the local maxima of `scores` (B, H, W) in a (2·radius+1)² window, as `simple_nms` of cvg/LightGlue.

    A pixel that equals its window's maximum is kept; two more rounds look for maxima among what is neither kept nor
    within `radius` of something kept. Pixels outside `inside` (B, H, W) bool are never maxima. A plateau is kept whole.
    """
    maxima = (scores == _window_max(scores, radius)) & inside
    for _ in range(2):
        blocked = _window_max(maxima.to(scores.dtype), radius) > 0
        rest = torch.where(blocked, torch.zeros_like(scores), scores)
        maxima = maxima | ((rest == _window_max(rest, radius)) & ~blocked & inside)
    return maxima


class Blocks(NamedTuple):
    """The best K blocks of BLOCK x BLOCK pixels."""

    best: Tensor
    """(B, K) their largest score, descending; 0 for none."""
    pixels: Tensor
    """(B, K, PIXELS) their scores, row by row; zeros for none."""
    number: Tensor
    """(B, K) int32: which block of the map, row by row."""


def best_pixels(scores: Tensor, count: int, radius: int) -> tuple[Tensor, Tensor]:
    """The best `count` of `scores` (B, H, W), not negative, H and W multiples of 8: (B, count) descending, 0 for none; int32 flat indices.

    `radius` is that of the suppression that `scores` come from. The best cells hold the best blocks, and those the best pixels, whatever
    ties there are, so that nothing sorts a row of every pixel: TensorRT gives a row of TopK to one thread block. What survives in one
    block of 4x4 pixels has one score if the radius is 3 or more, so that the last choice is a matter of counting. Which of equal
    scores come first is open, as it is in TopK itself.
    """
    blocks = best_blocks(scores, count)
    across = scores.shape[2] // BLOCK
    rank, slot, found = _counted(blocks, count) if radius >= BLOCK - 1 else _sorted(blocks, count)
    block = blocks.number.gather(1, rank)
    row, line = block // across, slot // BLOCK
    index = (row * BLOCK + line) * scores.shape[2] + (block - row * across) * BLOCK + (slot - line * BLOCK)
    return found, index


def best_blocks(scores: Tensor, count: int) -> Blocks:
    """The `count` blocks of `scores` (B, H, W) with the best pixels."""
    batch, height, width = scores.shape
    down, across = height // CELL, width // CELL
    split = scores.reshape(batch, down, 2, BLOCK, across, 2, BLOCK).permute(0, 1, 4, 2, 5, 3, 6)
    pixels = split.reshape(batch, down * across * QUARTERS, PIXELS)
    tops = pixels.amax(-1).reshape(batch, down * across, QUARTERS)
    cells = tops.amax(-1)
    number = cells.shape[1]
    if not isinstance(number, int) or number < count:
        # An image may hold fewer than K cells: K zeros more give TopK enough to choose from.
        cells = F.pad(cells, (0, count))
    most, cell = cells.topk(count, dim=1)
    some = (most > 0).unsqueeze(-1)
    cell = torch.where(most > 0, cell, torch.zeros_like(cell))
    quarters = tops.gather(1, cell.unsqueeze(-1).expand(-1, -1, QUARTERS))
    best, place = torch.where(some, quarters, torch.zeros_like(quarters)).flatten(1).topk(count, dim=1)
    rank = place // QUARTERS
    quarter = (place - rank * QUARTERS).to(torch.int32)
    cell = cell.gather(1, rank).to(torch.int32)
    block = (cell * QUARTERS + quarter).to(torch.int64)
    chosen = pixels.gather(1, block.unsqueeze(-1).expand(-1, -1, PIXELS))
    chosen = torch.where((best > 0).unsqueeze(-1), chosen, torch.zeros_like(chosen))
    row, half = cell // across, quarter // 2
    return Blocks(best, chosen, (row * 2 + half) * (2 * across) + (cell - row * across) * 2 + (quarter - half * 2))


def _sorted(blocks: Blocks, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rank of the block (B, K) int64, place in it (B, K) int32 and score (B, K) of the best pixels, by sorting them."""
    found, place = blocks.pixels.flatten(1).topk(count, dim=1)
    rank = place // PIXELS
    return rank, (place - rank * PIXELS).to(torch.int32), found


def _counted(blocks: Blocks, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `_sorted`, where the survivors of a block have one score: the j-th pixel lies in the first block that the running sum of their
    numbers carries beyond j.
    """
    alive = (blocks.pixels > 0).to(torch.int32)
    numbers = alive.sum(-1, dtype=torch.int32)
    ends = running_sum(numbers)
    j = torch.arange(count, dtype=torch.int32, device=ends.device)
    lane = (ends[..., -1].unsqueeze(1) <= j[:, None]).to(torch.int32).sum(-1, dtype=torch.int32)
    some = lane < ends.shape[1]
    lane = torch.where(some, lane, torch.zeros_like(lane))
    inside = ends.gather(1, lane.to(torch.int64).unsqueeze(-1).expand(-1, -1, LANE))
    rank = lane * LANE + (inside <= j[:, None]).to(torch.int32).sum(-1, dtype=torch.int32)
    rank = torch.where(some, rank, torch.zeros_like(rank)).to(torch.int64)
    nth = j - (ends.flatten(1)[:, :count] - numbers).gather(1, rank)
    members = alive.gather(1, rank.unsqueeze(-1).expand(-1, -1, PIXELS))
    places = torch.arange(PIXELS, dtype=torch.int32, device=ends.device)
    before = (members.unsqueeze(-2) * (places < places[:, None]).to(torch.int32)).sum(-1, dtype=torch.int32)
    is_nth = members * (before == nth.unsqueeze(-1)).to(torch.int32)
    found = blocks.best.gather(1, rank)
    return rank, (is_nth * places).sum(-1, dtype=torch.int32), torch.where(some, found, torch.zeros_like(found))


def running_sum(numbers: Tensor) -> Tensor:
    """Sum of each of `numbers` (B, N) int32 and those before it, in two steps: TensorRT's CumSum is a loop.

    (B, R, LANE): R lanes one after the other, what N leaves of the last one filled with the whole sum.
    """
    batch, count = numbers.shape
    lanes = F.pad(numbers, (0, -count % LANE)).reshape(batch, -1, LANE)
    inside = (lanes.unsqueeze(-2) * _lower(LANE, numbers.device)).sum(-1, dtype=torch.int32)
    rows = inside[..., -1]
    lower = _lower(rows.shape[1], numbers.device)
    before = (rows.unsqueeze(1) * lower).sum(-1, dtype=torch.int32) - rows
    return inside + before.unsqueeze(-1)


def _lower(size: int, device: torch.device) -> Tensor:
    """(size, size) int32: 1 on and below the diagonal."""
    index = torch.arange(size, dtype=torch.int32, device=device)
    return (index <= index[:, None]).to(torch.int32)


def _window_max(x: Tensor, radius: int) -> Tensor:
    """Maximum over a square window, by columns and then by rows: the same numbers from fewer reads."""
    side = 2 * radius + 1
    x = F.max_pool2d(x.unsqueeze(1), (side, 1), stride=1, padding=(radius, 0))
    return F.max_pool2d(x, (1, side), stride=1, padding=(0, radius)).squeeze(1)
