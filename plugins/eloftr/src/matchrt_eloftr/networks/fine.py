"""Fine matches in fixed shapes (upstream `fine_matching`, reproduced with its peculiarities).

First stage: all but the last `regress_channels` features of an 8x8 window of image 0 and a 10x10 window of image 1, each scaled by
1 / sqrt(all channels); dual softmax over the whole 64x100; the best pair inside the inner 8x8. Second stage: the last channels
at that pixel against 3x3 pixels of the 10x10 window, whose centre is not moved by the window's border of one, index -1 meaning the
last; softmax at temperature 10; the expected offset moves keypoint 1 only. Both keypoints are 8 cell + pixel - 3.5.

Windows are six half-resolution pixels a side, and bilinear interpolation (linear, so it commutes with the products) is a constant
matrix. A cell in the border, whose window would leave the map, is never a match; its window is moved inside.

Every product has factors that TensorFloat-32 holds, so that it loses nothing here: features come from half layers, interpolation has
sixteenths, and what was computed in between is handed on as a sum of two such numbers (`in_parts`). Small products are sums of products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matchrt_eloftr.networks.config import COARSE_STRIDE, Architecture, GraphSettings, Size
from matchrt_eloftr.networks.indexing import take

WINDOW = 8
TAPS = 6
REGRESSION_TEMPERATURE = 10.0
SPLIT = 2.0**13 + 1


def interpolation_matrix() -> Tensor:
    """(10, 6): full-resolution pixels -1 to 8 of a window from half-resolution pixels -1 to 4 (half-pixel centres)."""
    matrix = torch.zeros(WINDOW + 2, TAPS)
    for row, pixel in enumerate(range(-1, WINDOW + 1)):
        position = (pixel + 0.5) / 2 - 0.5 + 1  # tap 0 is half-resolution pixel -1
        low = int(position)
        matrix[row, low] = 1 - (position - low)
        matrix[row, low + 1] = position - low
    return matrix


def first_taps(cells: Tensor) -> Tensor:
    """Half-resolution pixel of the first tap of each cell 0 to n - 1 along one axis, moved inside at both ends."""
    first = (cells * 4 - 1).clamp(min=0)
    return torch.cat((first[:-1], first[-1:] - 1))


def in_parts(x: Tensor, dim: int) -> Tensor:
    """`x`, float32, as leading 11 bits and the rest, one after the other along `dim`; their sum is `x` (Veltkamp's splitting).

    Its product with a matrix repeated twice is the product with `x`, up to 2^-22 where factors are cut to 11 bits.
    """
    scaled = x * SPLIT
    leading = scaled - (scaled - x)
    return torch.cat((leading, x - leading), dim)


def neighbour_pixels() -> Tensor:
    """(64, 9) int64: the 3x3 pixels, in the flattened 10x10 window, of each inner pixel as upstream indexes them."""
    around = torch.tensor([-1, 0, 1])
    row, column = torch.arange(64) // WINDOW, torch.arange(64) % WINDOW
    rows, columns = (row[:, None] + around) % (WINDOW + 2), (column[:, None] + around) % (WINDOW + 2)
    return (rows[:, :, None] * (WINDOW + 2) + columns[:, None, :]).flatten(1)


class FineMatcher(nn.Module):
    """Keypoints of coarse cell pairs from the half-resolution fine maps."""

    count: Tensor
    step: Tensor
    along_x: Tensor
    along_y: Tensor
    inner: Tensor
    inner_twice: Tensor
    window_twice: Tensor
    neighbours: Tensor
    pixels: Tensor
    offsets: Tensor

    def __init__(self, settings: GraphSettings, architecture: Architecture) -> None:
        super().__init__()
        self.regress = architecture.regress_channels
        self.scale = 1.0 / architecture.dims[0]
        self.regress_scale = 1.0 / (architecture.regress_channels**0.5 * REGRESSION_TEMPERATURE)
        self.dynamic = settings.smallest is not None
        if self.dynamic:
            count = torch.arange(max(settings.coarse0))
            self.register_buffer("count", count, persistent=False)
            self.register_buffer("step", torch.arange(TAPS), persistent=False)
            self.register_buffer("along_x", torch.tensor([1.0, 0.0]), persistent=False)
            self.register_buffer("along_y", torch.tensor([0.0, 1.0]), persistent=False)
        else:
            for number, (matched, size) in enumerate(
                ((settings.matched0, settings.size0), (settings.matched1, settings.size1))
            ):
                for name, table in zip(("start", "taps", "corner"), _tables(matched, size), strict=True):
                    self.register_buffer(f"{name}{number}", table, persistent=False)
        line = interpolation_matrix()
        window = torch.kron(line, line)  # (100, 36)
        inner = [10 * row + column for row in range(1, 9) for column in range(1, 9)]
        ring = [pixel for pixel in range(100) if pixel not in inner]
        self.register_buffer("inner", window[inner], persistent=False)
        self.register_buffer("inner_twice", window[inner].repeat(1, 2), persistent=False)
        self.register_buffer("window_twice", window[inner + ring].T.repeat(2, 1), persistent=False)
        self.register_buffer("neighbours", window[neighbour_pixels()], persistent=False)
        row, column = torch.arange(64) // WINDOW, torch.arange(64) % WINDOW
        self.register_buffer("pixels", torch.stack((column, row), -1).float() - 3.5, persistent=False)
        y, x = torch.arange(9) // 3 - 1, torch.arange(9) % 3 - 1
        self.register_buffer("offsets", torch.stack((x, y), -1).float(), persistent=False)

    def forward(self, map0: Tensor, map1: Tensor, cell0: Tensor, cell1: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, d1, H/2, W/2), cells (B, K) int64 to keypoints 0 and 1, (B, K, 2) float32 (x, y) pixels."""
        batch, slots = cell0.shape
        start0, taps0, corner0 = self._tables(0, map0)
        start1, taps1, corner1 = self._tables(1, map1)
        window0 = _windows(map0, take(start0, cell0), taps0)
        window1 = _windows(map1, take(start1, cell1), taps1)
        pixel0, pixel1 = self._best_pixels(window0[..., : -self.regress], window1[..., : -self.regress])
        point = take(self.inner, pixel0)[:, None] @ window0[..., -self.regress :]
        around = take(self.neighbours, pixel1) @ window1[..., -self.regress :]
        heat = ((point * self.regress_scale) * around).sum(-1, keepdim=True).softmax(1)
        move = (heat * self.offsets).sum(1).reshape(batch, slots, 2)
        keypoints0 = take(corner0, cell0) + take(self.pixels, pixel0).reshape(batch, slots, 2)
        keypoints1 = take(corner1, cell1) + take(self.pixels, pixel1).reshape(batch, slots, 2)
        return keypoints0, keypoints1 + move

    def _tables(self, number: int, fine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """First taps (L,), taps of a window (36,) and corners (L, 2) for a map (B, C, H/2, W/2)."""
        if not self.dynamic:
            start, taps, corner = (self.get_buffer(f"{name}{number}") for name in ("start", "taps", "corner"))
            return start, taps, corner
        height, width = fine.shape[-2] // 4, fine.shape[-1] // 4
        rows, columns = self.count[:height], self.count[:width]
        start = (first_taps(rows) * fine.shape[-1])[:, None] + first_taps(columns)[None]
        taps = (self.step * fine.shape[-1])[:, None] + self.step
        across, down = columns[None, :, None] * COARSE_STRIDE, rows[:, None, None] * COARSE_STRIDE
        corner = down * self.along_y + across * self.along_x
        return start.flatten(), taps.flatten(), corner.flatten(0, 1)

    def _best_pixels(self, window0: Tensor, window1: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (M, 36, C) to the best inner pixel (M,) of each image."""
        similarity = (window0 * self.scale) @ window1.transpose(1, 2)
        similarity = in_parts(similarity, 2) @ self.window_twice
        similarity = self.inner_twice @ in_parts(similarity, 1)
        score = (similarity.softmax(1) * similarity.softmax(2))[..., : WINDOW * WINDOW]
        best, column = score.amax(-1), score.argmax(-1)
        pixel0 = best.argmax(-1)
        return pixel0, column.gather(1, pixel0[:, None])[:, 0]


def _tables(matched: Size, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """First taps (L,) in the flattened half-resolution map, taps of a window (36,), and corners (L, 2) float32 of matched cells."""
    rows, columns = first_taps(torch.arange(size[0] // 8)), first_taps(torch.arange(size[1] // 8))
    width = size[1] // 2
    start = (rows[: matched[0], None] * width + columns[: matched[1]]).flatten()
    taps = (torch.arange(TAPS)[:, None] * width + torch.arange(TAPS)).flatten()
    return start, taps, cell_corners(matched)


def cell_corners(cells: Size) -> Tensor:
    """(L, 2) float32: pixel (x, y) of each cell's corner."""
    rows, columns = torch.meshgrid(torch.arange(cells[0]), torch.arange(cells[1]), indexing="ij")
    return torch.stack((columns, rows), -1).flatten(0, 1).float() * COARSE_STRIDE


def _windows(feature: Tensor, start: Tensor, taps: Tensor) -> Tensor:
    """Map (B, C, h, w) and first taps (B, K) to windows (B * K, 36, C), by one gather of rows."""
    batch, _, height, width = feature.shape
    table = feature.permute(0, 2, 3, 1).flatten(0, 2)
    if batch > 1:
        start = start + (torch.arange(batch, device=start.device) * (height * width))[:, None]
    index = start.reshape(-1, 1) + taps
    return take(table, index)
