"""The transformer as it is exported: the same function as `transformer.py`, with fewer and cheaper operations.

Exact rearrangements, all in float64 before rounding: the rotation of a pair is a signed permutation of the projection's rows;
`merge` and the message half of the first feed-forward matrix are one matrix, applied on the 1/32 grid because it commutes with
the bilinear upsampling; the upsampling is two small constant matrices. Features are (B, h, w, C) throughout.
A valid rectangle given as input chooses the upsampling matrices of that size and hides the keys outside it, which equals
cropping, as upstream does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matchrt_eloftr.networks.config import Size
from matchrt_eloftr.networks.indexing import halves, take
from matchrt_eloftr.networks.transformer import (
    AGGREGATION,
    AggregatedAttention,
    FeatureTransformer,
    rotary_table,
    rotate_pairs,
    top_left,
)

HIDDEN_KEY = -1.0e4
"""Added to the attention score of a key outside the valid rectangle; exp of it is 0 in float32 and it fits float16."""


def upsampling_matrix(size: int, valid: int | None = None) -> Tensor:
    """(4 size, size) float32 matrix of bilinear upsampling by 4 (half-pixel centres) of the first `valid` entries.

    Rows beyond 4 `valid` are zero. The weights are eighths: exact in float16.
    """
    valid = size if valid is None else valid
    matrix = torch.zeros(AGGREGATION * size, size)
    for row in range(AGGREGATION * valid):
        position = max((row + 0.5) / AGGREGATION - 0.5, 0.0)
        low = int(position)
        matrix[row, low] += 1 - (position - low)
        matrix[row, min(low + 1, valid - 1)] += position - low
    return matrix


@dataclass(frozen=True)
class Grid:
    """Constants of one image (or of both stacked): rotary table, upsampling matrices, score bias of its keys."""

    rotary: tuple[Tensor, Tensor]
    rows: Tensor  # (4h, h) or (B, 4h, h)
    columns: Tensor  # (4w, w) or (B, 1, 4w, w)
    bias: Tensor | None = None  # (B, 1, 1, h * w)


class PackedAttention(nn.Module):
    """An `AggregatedAttention` with its matrices combined; `rotary` for self layers."""

    query: Tensor
    key_value: Tensor
    message: Tensor
    feature: Tensor
    output: Tensor

    def __init__(self, layer: AggregatedAttention, *, rotary: bool) -> None:
        super().__init__()
        self.heads, self.rotary = layer.heads, rotary
        self.aggregate, self.norm1, self.norm2 = layer.aggregate, layer.norm1, layer.norm2
        channels = layer.q_proj.in_features
        query, key, value = (p.weight.detach() for p in (layer.q_proj, layer.k_proj, layer.v_proj))
        query = (query.double() * (channels // layer.heads) ** -0.5).float()
        first, second = layer.mlp[0], layer.mlp[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        message = first.weight.detach()[:, channels:].double() @ layer.merge.weight.detach().double()
        turned = [rotate_pairs(w.T).T for w in (query, key)] if rotary else []
        self.register_buffer("query", torch.cat((query, *turned[:1])))
        self.register_buffer("key_value", torch.cat((value, key, *turned[1:])))
        self.register_buffer("message", message.float())
        self.register_buffer("feature", first.weight.detach()[:, :channels].clone())
        self.register_buffer("output", second.weight.detach().clone())

    def forward(self, x: Tensor, source: Tensor, grid: Grid, source_grid: Grid) -> Tensor:
        """x (B, h, w, C) attends to source (B, h', w', C); the result has x's shape."""
        batch, height, width, channels = x.shape
        query = self.norm1(_tokens(self.aggregate(x.permute(0, 3, 1, 2))))
        memory = self.norm1(_tokens(F.max_pool2d(source.permute(0, 3, 1, 2), AGGREGATION)))
        query, memory = F.linear(query, self.query), F.linear(memory, self.key_value)
        value, key = memory[..., :channels], memory[..., channels : 2 * channels]
        if self.rotary:
            query = query[..., :channels] * grid.rotary[0] + query[..., channels:] * grid.rotary[1]
            key = key * source_grid.rotary[0] + memory[..., 2 * channels :] * source_grid.rotary[1]
        query, key, value = (self._split(t) for t in (query, key, value))
        scores = query @ key.transpose(2, 3)
        if source_grid.bias is not None:
            scores = scores + source_grid.bias
        message = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, -1, channels)
        message = F.linear(message, self.message)
        message = grid.rows @ message.reshape(batch, height // AGGREGATION, -1)
        message = grid.columns @ message.reshape(batch, height, width // AGGREGATION, -1)
        hidden = F.leaky_relu(F.linear(x, self.feature) + message, 0.01)
        out: Tensor = x + self.norm2(F.linear(hidden, self.output))
        return out

    def _split(self, tokens: Tensor) -> Tensor:
        batch, count, channels = tokens.shape
        return tokens.reshape(batch, count, self.heads, channels // self.heads).transpose(1, 2)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h * w, C)."""
    return x.flatten(2).transpose(1, 2)


class PackedTransformer(nn.Module):
    """A `FeatureTransformer` for fixed coarse sizes (rows, columns); `masked` if valid rectangles are inputs.

    `dynamic`: `cells` are the largest sizes, and smaller ones use the first entries of the tables. Positions count from the top
    left and a matrix depends on the valid size alone, so these are the same numbers.
    """

    def __init__(
        self,
        transformer: FeatureTransformer,
        cells: tuple[Size, Size],
        scale: tuple[float, float],
        *,
        masked: bool,
        dynamic: bool = False,
    ) -> None:
        super().__init__()
        layers = [layer for layer in transformer.layers if isinstance(layer, AggregatedAttention)]
        channels = layers[0].q_proj.in_features
        self.masked, self.dynamic = masked, dynamic
        self.tokens = tuple((h // AGGREGATION, w // AGGREGATION) for h, w in cells)
        self.layers = nn.ModuleList(PackedAttention(layer, rotary=index % 2 == 0) for index, layer in enumerate(layers))
        for number, (h, w) in enumerate(self.tokens):
            cosine, sine = rotary_table(h, w, channels, scale)
            self.register_buffer(f"cosine{number}", cosine)
            self.register_buffer(f"sine{number}", sine)
            self.register_buffer(f"rows{number}", _upsampling(h, masked))
            self.register_buffer(f"columns{number}", _upsampling(w, masked))

    def forward(
        self, coarse0: Tensor, coarse1: Tensor, valid: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Coarse features (B, C, h, w) to (B, h, w, C); `valid` holds each image's valid (height, width) in tokens, (B, 2)."""
        x0, x1 = coarse0.permute(0, 2, 3, 1), coarse1.permute(0, 2, 3, 1)
        grid0 = self._grid(0, x0, valid[0] if valid else None)
        grid1 = self._grid(1, x1, valid[1] if valid else None)
        both = _stack(grid0, grid1) if self.tokens[0] == self.tokens[1] else None
        for index in range(0, len(self.layers), 2):
            within, across = self.layers[index], self.layers[index + 1]
            if both is not None:
                stacked = torch.cat((x0, x1))
                x0, x1 = halves(within(stacked, stacked, both, both), x0.shape[0])
            else:
                x0, x1 = within(x0, x0, grid0, grid0), within(x1, x1, grid1, grid1)
            x0 = across(x0, x1, grid0, grid1)
            x1 = across(x1, x0, grid1, grid0)
        return x0, x1

    def _grid(self, number: int, x: Tensor, valid: Tensor | None) -> Grid:
        rotary = self.get_buffer(f"cosine{number}"), self.get_buffer(f"sine{number}")
        rows, columns = self.get_buffer(f"rows{number}"), self.get_buffer(f"columns{number}")
        if valid is None:
            return Grid(rotary, rows, columns)
        (h, w), (height, width) = self.tokens[number], (valid[:, :1], valid[:, 1:])
        count_rows, count_columns = (torch.arange(n, dtype=valid.dtype, device=valid.device) for n in (h, w))
        rows, columns = take(rows, height[:, 0] - 1), take(columns, width[:, 0] - 1)
        if self.dynamic:
            full = h, w
            h, w = x.shape[1] // AGGREGATION, x.shape[2] // AGGREGATION
            count_rows, count_columns = count_rows[:h], count_columns[:w]
            rows, columns = rows[:, : x.shape[1], :h], columns[:, : x.shape[2], :w]
            rotary = top_left(rotary[0], full, (h, w)), top_left(rotary[1], full, (h, w))
        shown = ((count_rows < height)[:, :, None] & (count_columns < width)[:, None, :]).flatten(1)
        bias = (1.0 - shown.to(rows.dtype))[:, None, None, :] * HIDDEN_KEY
        return Grid(rotary, rows, columns[:, None], bias)


def _upsampling(size: int, masked: bool) -> Tensor:
    """One matrix, or with `masked` one for each number of valid tokens from 1 to `size`."""
    if not masked:
        return upsampling_matrix(size)
    return torch.stack([upsampling_matrix(size, valid) for valid in range(1, size + 1)])


def _stack(grid0: Grid, grid1: Grid) -> Grid:
    """The constants for both images stacked along the batch."""
    if grid0.bias is None or grid1.bias is None:
        return grid0
    return Grid(
        grid0.rotary,
        torch.cat((grid0.rows, grid1.rows)),
        torch.cat((grid0.columns, grid1.columns)),
        torch.cat((grid0.bias, grid1.bias)),
    )
