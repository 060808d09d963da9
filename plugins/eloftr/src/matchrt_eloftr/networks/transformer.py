"""Aggregated attention between the two images' coarse features (EfficientLoFTR, section 3.2), as published.

Tokens are 4x4 cells: a depthwise convolution makes the queries, max pooling the keys and values. The rotary table is rounded to
float16 because upstream stores it so. Cross layers update image 0 first, and image 1 attends to the updated image 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matchrt_eloftr.networks.config import Architecture, Size

AGGREGATION = 4
"""Cells a side of one token."""


def rotary_table(
    rows: int, columns: int, channels: int, scale: tuple[float, float] = (1.0, 1.0)
) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each (rows * columns, channels) float32 holding float16 values.

    Channels 4k to 4k+3 turn by row, row, column, column with frequency 10000^(-4k / channels); positions count from 1 and are
    multiplied by `scale` (rows, columns), the ratio of training to test size. Source: upstream `position_encoding.py`.
    """
    frequency = 1.0 / (10000.0 ** (torch.arange(0, channels // 4, dtype=torch.float32) / (channels // 4)))
    y = torch.arange(1, rows + 1, dtype=torch.float32) * scale[0]
    x = torch.arange(1, columns + 1, dtype=torch.float32) * scale[1]
    angles = torch.stack(
        (
            (y[:, None] * frequency)[:, None].expand(rows, columns, -1),
            (x[:, None] * frequency)[None].expand(rows, columns, -1),
        ),
        dim=-1,
    ).reshape(rows * columns, channels // 2)
    angles = angles.repeat_interleave(2, dim=-1)
    return angles.cos().half().float(), angles.sin().half().float()


def top_left(table: Tensor, full: Size, size: Size) -> Tensor:
    """The top left part of a table (rows * columns, C) of a grid of `full` (rows, columns), in the same form."""
    return table.reshape(*full, -1)[: size[0], : size[1]].reshape(size[0] * size[1], -1)


def rotate_pairs(x: Tensor) -> Tensor:
    """(..., C): each channel pair (a, b) becomes (-b, a)."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


class AggregatedAttention(nn.Module):
    """One layer; 11 tensors under upstream's names (`AG_RoPE_EncoderLayer`)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.aggregate = nn.Conv2d(channels, channels, AGGREGATION, AGGREGATION, groups=channels, bias=False)
        self.q_proj = nn.Linear(channels, channels, bias=False)
        self.k_proj = nn.Linear(channels, channels, bias=False)
        self.v_proj = nn.Linear(channels, channels, bias=False)
        self.merge = nn.Linear(channels, channels, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * channels, 2 * channels, bias=False),
            nn.LeakyReLU(0.01),
            nn.Linear(2 * channels, channels, bias=False),
        )
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, source: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x (B, C, h, w) attends to source (B, C, h', w'); the result has x's shape. `rotary` in self layers only."""
        height, width = x.shape[-2:]
        query = self.norm1(self.aggregate(x).flatten(2).transpose(1, 2))
        source = self.norm1(F.max_pool2d(source, AGGREGATION).flatten(2).transpose(1, 2))
        query, key, value = self.q_proj(query), self.k_proj(source), self.v_proj(source)
        if rotary is not None:
            cosine, sine = rotary
            query = query * cosine + rotate_pairs(query) * sine
            key = key * cosine + rotate_pairs(key) * sine
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        message = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        message = self.merge(message).transpose(1, 2).unflatten(-1, (height // AGGREGATION, width // AGGREGATION))
        message = F.interpolate(message, scale_factor=AGGREGATION, mode="bilinear", align_corners=False)
        message = self.norm2(self.mlp(torch.cat((x, message), dim=1).permute(0, 2, 3, 1)))
        out: Tensor = x + message.permute(0, 3, 1, 2)
        return out


class FeatureTransformer(nn.Module):
    """Four pairs of a self and a cross layer, in upstream's order.

    `tokens`: the largest grid (rows, columns) that a rotary table is kept for, where the weights are; the table of a smaller one is
    its top left part. A larger one's is computed on the CPU at every call.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, architecture: Architecture, tokens: Size, scale: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        width = architecture.dims[2]
        self.tokens, self.scale = tokens, scale
        cosine, sine = rotary_table(*tokens, width, scale)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        self.layers = nn.ModuleList(
            AggregatedAttention(width, architecture.heads) for _ in range(2 * architecture.layers)
        )

    def forward(self, coarse0: Tensor, coarse1: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse features (B, C, h, w) of both images to the same shapes."""
        rotary0, rotary1 = self._rotary(coarse0), self._rotary(coarse1)
        for index in range(0, len(self.layers), 2):
            within, across = self.layers[index], self.layers[index + 1]
            coarse0, coarse1 = within(coarse0, coarse0, rotary0), within(coarse1, coarse1, rotary1)
            coarse0 = across(coarse0, coarse1)
            coarse1 = across(coarse1, coarse0)
        return coarse0, coarse1

    def _rotary(self, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (h / 4 * w / 4, C) for features (B, C, h, w)."""
        rows, columns = coarse.shape[-2] // AGGREGATION, coarse.shape[-1] // AGGREGATION
        if (rows, columns) == self.tokens:
            return self.cosine, self.sine
        if rows > self.tokens[0] or columns > self.tokens[1]:
            cosine, sine = rotary_table(rows, columns, coarse.shape[1], self.scale)
            return cosine.to(coarse.device), sine.to(coarse.device)
        return top_left(self.cosine, self.tokens, (rows, columns)), top_left(self.sine, self.tokens, (rows, columns))
