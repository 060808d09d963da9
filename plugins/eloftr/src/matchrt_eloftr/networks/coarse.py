"""Coarse matches in fixed shapes, from two reductions over pieces of the similarity.

With s the similarity, the dual softmax is exp(2 s - r - c), r and c the log-sum-exp of its row and of its column. The first pass
reduces s to r and c; the second takes each row's best s - c/2 and each column's best s - r/2. A pair is mutual when its s - r/2 is
the best of its column: the same numbers are compared, so equality is exact. Nothing of size L0 x L1 leaves a piece.
All of it is float32: scores reach hundreds, and the differences between them decide.
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
"""Penalty that keeps a border cell from being returned while it still competes."""


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

    def __init__(self, settings: GraphSettings) -> None:
        super().__init__()
        self.settings = settings
        self.rows = settings.matched0[0] * settings.matched0[1]
        self.columns = settings.matched1[0] * settings.matched1[1]
        pieces = math.ceil(self.rows * self.columns / settings.similarity_elements)
        self.rows_per_piece = math.ceil(self.rows / max(pieces, 1))
        self.keep = self.rows * self.columns <= settings.keep_elements
        self.register_buffer("slot_row", torch.arange(self.rows).repeat_interleave(settings.per_row), persistent=False)

    def forward(self, feature0: Tensor, feature1: Tensor, cells0: Cells, cells1: Cells) -> CoarseMatches:
        """The best `slots` pairs by score (or every row's), with the number of candidates before that choice."""
        feature0 = feature0 * (1.0 / (feature0.shape[-1] * self.settings.temperature))
        size = None if self.settings.smallest is not None else self.rows_per_piece
        pieces = _Pieces(feature0, feature1.transpose(1, 2), size, cells0, cells1, keep=self.keep and size is not None)
        if self.settings.score == "similarity":
            zero_rows = [torch.zeros_like(piece[..., :1]) for piece in pieces.features]
            score, column, count = self._mutual(pieces, zero_rows, torch.zeros_like(feature1[:, None, :, 0]))
        else:
            rows, columns = _log_sums(pieces)
            choose = self._mutual if self.settings.mutual else self._one_to_many
            score, column, count = choose(pieces, rows, columns)
        return self._select(score, column, count)

    def _mutual(self, pieces: _Pieces, rows: list[Tensor], columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score (B, L0) and column (B, L0) of each row's best pair, 0 unless it is its column's best and off the border."""
        values, chosen, own, best = [], [], [], []
        for number, row in enumerate(rows):
            similarity = pieces.similarity(number)
            value, column = (similarity - columns * 0.5).topk(1, dim=-1)
            values.append(2.0 * value - row)
            chosen.append(column)
            own.append(similarity.gather(-1, column) - row * 0.5)
            best.append((similarity - row * 0.5).amax(1, keepdim=True))
        column = torch.cat(chosen, 1)[..., 0]
        highest = torch.cat(best, 1).amax(1) + (1.0 - pieces.cells1.inside.float()) * EXCLUDED
        mutual = torch.cat(own, 1)[..., 0] >= highest.gather(1, column)
        value = torch.cat(values, 1)[..., 0]
        score = value.exp()
        if self.settings.score == "similarity":
            score = torch.cat(own, 1)[..., 0].clamp(min=0.0)
        score = torch.where(mutual & pieces.cells0.inside, score, torch.zeros_like(score))
        return score, column, (score > self.settings.score_floor).sum(1)

    def _one_to_many(self, pieces: _Pieces, rows: list[Tensor], columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and columns (B, L0 * m) of each row's m best pairs off the border, and the count of all pairs above the floor."""
        columns = columns * 0.5 + (1.0 - pieces.cells1.inside.float())[:, None] * EXCLUDED
        floor = math.log(self.settings.score_floor)
        values, chosen, counts = [], [], []
        for number, row in enumerate(rows):
            value = pieces.similarity(number) - columns
            above = (value > (row + floor) * 0.5).to(value.dtype).sum(-1)
            value, column = value.topk(min(self.settings.per_row, self.columns), dim=-1)
            values.append(2.0 * value - row)
            chosen.append(column)
            counts.append(above)
        score = torch.cat(values, 1).exp()
        kept = (score > self.settings.score_floor) & pieces.cells0.inside[..., None]
        score = torch.where(kept, score, torch.zeros_like(score))
        count = (torch.cat(counts, 1) * pieces.cells0.inside.float()).to(torch.int32).sum(1)
        return score.flatten(1), torch.cat(chosen, 1).flatten(1), count

    def _select(self, score: Tensor, column: Tensor, count: Tensor) -> CoarseMatches:
        count = count.to(torch.int32)
        if self.settings.top_k is None:
            return CoarseMatches(score, self.slot_row.expand(score.shape[0], -1), column, count)
        score, slot = score.topk(self.settings.slots, dim=-1)
        row = slot if self.settings.per_row == 1 else take(self.slot_row, slot)
        return CoarseMatches(score, row, column.gather(1, slot), count)


class _Pieces:
    """The similarity by pieces of `rows` rows: kept after the first use, or computed each time.

    None for `rows` makes as many pieces as a token has cells: that divides every size.
    """

    def __init__(
        self, feature0: Tensor, feature1: Tensor, rows: int | None, cells0: Cells, cells1: Cells, *, keep: bool
    ) -> None:
        self.features = _split(feature0, rows)
        self.feature1, self.cells0, self.cells1 = feature1, cells0, cells1
        self.biases = None if cells0.bias is None else _split(cells0.bias[..., None], rows)
        self.kept: dict[int, Tensor] | None = {} if keep else None

    def similarity(self, number: int) -> Tensor:
        """Piece `number`, (B, rows, L1)."""
        if self.kept is not None and number in self.kept:
            return self.kept[number]
        piece = self.features[number] @ self.feature1
        if self.biases is not None and self.cells1.bias is not None:
            piece = piece + self.cells1.bias[:, None] + self.biases[number]
        if self.kept is not None:
            self.kept[number] = piece
        return piece


def _split(x: Tensor, rows: int | None) -> tuple[Tensor, ...]:
    """(B, L, C) by pieces along L."""
    if rows is None:
        return x.reshape(x.shape[0], PIECES, x.shape[1] // PIECES, x.shape[2]).unbind(1)
    return tuple(x.split(rows, dim=1)) if x.shape[1] > rows else (x,)


def _log_sums(pieces: _Pieces) -> tuple[list[Tensor], Tensor]:
    """Log-sum-exp of each row, (B, rows, 1) by piece, and of each column, (B, 1, L1)."""
    rows, columns = [], []
    for number in range(len(pieces.features)):
        similarity = pieces.similarity(number)
        rows.append(_log_sum(similarity, -1))
        columns.append(_log_sum(similarity, 1))
    return rows, columns[0] if len(columns) == 1 else _log_sum(torch.cat(columns, 1), 1)


def _log_sum(x: Tensor, dim: int) -> Tensor:
    """Log-sum-exp that cannot overflow; spelled out because TensorRT's ReduceLogSumExp does not shift by the maximum."""
    highest = x.amax(dim, keepdim=True)
    return highest + (x - highest).exp().sum(dim, keepdim=True).log()


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
