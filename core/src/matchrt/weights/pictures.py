"""Pictures on which random weights are calibrated, so that a network behaves on photographs as with trained ones."""

from __future__ import annotations

import torch
from torch import Tensor


def dead_leaves(height: int = 128, width: int = 160, count: int = 600) -> Tensor:
    """(1, 1, height, width) float32 in [0, 1]: opaque rectangles of random sizes and greys, one over the other, whose edges and contrasts
    are like a photograph's (the dead leaves model; Lee, Mumford and Huang 2001). From torch's own generator, integers only, so that
    a seed gives the same picture everywhere.
    """
    image = torch.zeros(height, width)
    for _ in range(count):
        bottom, right, grey, *draws = (int(torch.randint(n, ())) for n in (height, width, 256, 64, 64))
        rows, columns = (min(60, 4096 // (draw + 1) ** 2) for draw in draws)
        image[max(0, bottom - rows) : bottom + 1, max(0, right - columns) : right + 1] = grey
    return image[None, None] / 255
