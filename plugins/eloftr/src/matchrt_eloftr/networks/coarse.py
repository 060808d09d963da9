"""Coarse matches in fixed shapes, from two reductions over pieces of the similarity.

With s the similarity, the dual softmax is exp(2 s - r - c), r and c the log-sum-exp of its row and of its column. The first pass
reduces s to r and c; the second takes each row's best s - c/2 and each column's best s - r/2. A pair is mutual when each is the
other's best. Columns are reduced as rows of the product the other way round, which costs a product and saves more: TensorRT reduces
along the last axis several times as fast. Nothing of size L0 x L1 leaves a piece.
All of it is float32: scores reach hundreds, and the differences between them decide. The scale of the similarity comes after the
product, whose factors stay as the transformer gave them: exact in half, so TensorFloat-32 loses nothing there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from matchrt_eloftr.networks.config import COARSE_STRIDE, TOKEN_STRIDE, GraphSettings, Size
from matchrt_eloftr.networks.indexing import take

OUTSIDE = -1.0e4
"""Similarity bias of a cell outside the valid rectangle."""

EXCLUDED = 1.0e9
"""Penalty that keeps a border cell from being chosen where each row takes several columns."""


PIECES = (TOKEN_STRIDE // COARSE_STRIDE) ** 2
"""Cells of a token, and pieces of the similarity where sizes are dynamic."""


@dataclass(frozen=True)
class Cells:
    """Which cells of one image take part: `bias` (B, L) for the similarity or None, `inside` (B or 1, L): not in the border."""

    inside: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class CoarseMatches:
    """`score` (B, K), 0 where a slot is empty; `cell0`, `cell1` (B, K) int64 in the matched grids; `candidates` (B,) int32."""

    score: Tensor
    cell0: Tensor
    cell1: Tensor
    candidates: Tensor


class CoarseMatcher(nn.Module):
    """Scores and cell pairs of features (B, L0, C) and (B, L1, C)."""

    slot_row: Tensor
    number: Tensor

    def __init__(self, settings: GraphSettings) -> None:
        super().__init__()
        self.settings = settings
        self.rows = settings.matched0[0] * settings.matched0[1]
        self.columns = settings.matched1[0] * settings.matched1[1]
        self.pieces = max(math.ceil(self.rows * self.columns / settings.similarity_elements), 1)
        self.keep = self.rows * self.columns <= settings.keep_elements
        self.register_buffer("number", torch.arange(self.rows), persistent=False)
        self.register_buffer("slot_row", torch.arange(self.rows).repeat_interleave(settings.per_row), persistent=False)

    def forward(self, feature0: Tensor, feature1: Tensor, cells0: Cells, cells1: Cells) -> CoarseMatches:
        """The best `slots` pairs by score (or every row's), with the number of candidates before that choice."""
        side0, side1 = self._side(feature0, feature1, cells0, cells1), self._side(feature1, feature0, cells1, cells0)
        if self.settings.score == "similarity":
            zero0, zero1 = torch.zeros_like(feature0[..., :1]), torch.zeros_like(feature1[..., :1])
            score, column, count = self._mutual(side0, side1, zero0, zero1)
        else:
            choose = self._mutual if self.settings.mutual else self._one_to_many
            score, column, count = choose(side0, side1, side0.log_sums(), side1.log_sums())
        return self._select(score, column, count)

    def _side(self, own: Tensor, other: Tensor, own_cells: Cells, other_cells: Cells) -> _Side:
        rows = math.ceil(own.shape[1] / self.pieces) if self.settings.smallest is None else None
        scale = 1.0 / (own.shape[-1] * self.settings.temperature)
        return _Side(own, other, rows, scale, own_cells, other_cells, keep=self.keep and rows is not None)

    def _mutual(self, side0: _Side, side1: _Side, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score (B, L0) and column (B, L0) of each row's best pair, 0 unless it is its column's best and off the border.

        `rows` (B, L0, 1) and `columns` (B, L1, 1): log-sum-exp, or zeros.
        """
        value, column = side0.best(columns)
        _, row = side1.best(rows)
        value, column, row = value[..., 0], column[..., 0], row[..., 0]
        row = torch.where(
            side1.own.inside, row, torch.full_like(row, -1)
        )  # a cell in the border competes, but is nobody's match
        mutual = row.gather(1, column) == self.number[: column.shape[1]]
        similar = self.settings.score == "similarity"
        score = value.clamp(min=0.0) if similar else (2.0 * value - rows[..., 0]).exp()
        score = torch.where(mutual & side0.own.inside, score, torch.zeros_like(score))
        return score, column, (score > self.settings.score_floor).sum(1)

    def _one_to_many(self, side0: _Side, side1: _Side, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and columns (B, L0 * m) of each row's m best pairs off the border, and the count of all pairs above the floor."""
        excluded = (columns * 0.5 + (1.0 - side1.own.inside.float())[..., None] * EXCLUDED).transpose(1, 2)
        floor = math.log(self.settings.score_floor)
        values, chosen, counts = [], [], []
        for number, row in enumerate(_split(rows, side0.rows)):
            value = side0.similarity(number) - excluded
            above = (value > (row + floor) * 0.5).to(value.dtype).sum(-1)
            value, column = value.topk(min(self.settings.per_row, self.columns), dim=-1)
            values.append(2.0 * value - row)
            chosen.append(column)
            counts.append(above)
        score = torch.cat(values, 1).exp()
        kept = (score > self.settings.score_floor) & side0.own.inside[..., None]
        score = torch.where(kept, score, torch.zeros_like(score))
        count = (torch.cat(counts, 1) * side0.own.inside.float()).to(torch.int32).sum(1)
        return score.flatten(1), torch.cat(chosen, 1).flatten(1), count

    def _select(self, score: Tensor, column: Tensor, count: Tensor) -> CoarseMatches:
        count = count.to(torch.int32)
        if self.settings.top_k is None:
            return CoarseMatches(score, self.slot_row.expand(score.shape[0], -1), column, count)
        score, slot = score.topk(self.settings.slots, dim=-1)
        row = slot if self.settings.per_row == 1 else take(self.slot_row, slot)
        return CoarseMatches(score, row, column.gather(1, slot), count)


class _Side:
    """The similarity of one image's cells (rows) with the other's, by pieces of `rows` rows: kept after the first use, or computed again.

    None for `rows` makes as many pieces as a token has cells: that divides every size.
    """

    def __init__(
        self, own: Tensor, other: Tensor, rows: int | None, scale: float, cells: Cells, others: Cells, *, keep: bool
    ) -> None:
        self.own, self.rows, self.scale = cells, rows, scale
        self.features = _split(own, rows)
        self.other = other.transpose(1, 2)
        self.biases = None if cells.bias is None else _split(cells.bias[..., None], rows)
        self.other_bias = None if others.bias is None else others.bias[:, None]
        self.kept: dict[int, Tensor] | None = {} if keep else None

    def similarity(self, number: int) -> Tensor:
        """Piece `number`, (B, rows, L)."""
        if self.kept is not None and number in self.kept:
            return self.kept[number]
        piece = (self.features[number] @ self.other) * self.scale
        if self.biases is not None and self.other_bias is not None:
            piece = piece + self.other_bias + self.biases[number]
        if self.kept is not None:
            self.kept[number] = piece
        return piece

    def log_sums(self) -> Tensor:
        """Log-sum-exp of each row, (B, L, 1)."""
        return torch.cat([_log_sum(self.similarity(n)) for n in range(len(self.features))], 1)

    def best(self, others: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's best similarity less half of `others` (B, L', 1), and where it is: (B, L, 1) each."""
        half = (others * 0.5).transpose(1, 2)
        found = [(self.similarity(n) - half).topk(1, dim=-1) for n in range(len(self.features))]
        return torch.cat([f.values for f in found], 1), torch.cat([f.indices for f in found], 1)


def _split(x: Tensor, rows: int | None) -> tuple[Tensor, ...]:
    """(B, L, C) by pieces along L."""
    if rows is None:
        return x.reshape(x.shape[0], PIECES, x.shape[1] // PIECES, x.shape[2]).unbind(1)
    return tuple(x.split(rows, dim=1)) if x.shape[1] > rows else (x,)


def _log_sum(x: Tensor) -> Tensor:
    """Log-sum-exp along the last axis that cannot overflow; spelled out, as TensorRT's ReduceLogSumExp does not shift by the maximum."""
    highest = x.amax(-1, keepdim=True)
    return highest + (x - highest).exp().sum(-1, keepdim=True).log()


def constant_inside(cells: Size, border: int) -> Tensor:
    """(1, L) bool: cells at least `border` away from every side of a grid of (rows, columns)."""
    inside = torch.zeros(cells, dtype=torch.bool)
    inside[border : cells[0] - border, border : cells[1] - border] = True
    return inside.flatten()[None]


def cells_of(valid: Tensor, rows: Tensor, columns: Tensor, border: int) -> Cells:
    """Cells for a valid rectangle given as (B, 2) int32 pixels (height, width); `rows` (h,) and `columns` (w,) int32 count up."""
    height, width = valid[:, :1], valid[:, 1:]
    shown = _grid(rows * COARSE_STRIDE < height, columns * COARSE_STRIDE < width)
    inside_rows = (rows >= border) & ((rows + border) * COARSE_STRIDE < height)
    inside_columns = (columns >= border) & ((columns + border) * COARSE_STRIDE < width)
    return Cells(_grid(inside_rows, inside_columns), (1.0 - shown.float()) * OUTSIDE)


def _grid(rows: Tensor, columns: Tensor) -> Tensor:
    """(B, h) and (B, w) bool to (B, h * w): both hold."""
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)
