"""Indexing that every exporter writes without guessing at sizes."""

from __future__ import annotations

from torch import Tensor


def take(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]` for a table (N, ...) and an integer index of any shape, without negative indices."""
    return table.index_select(0, index.reshape(-1)).reshape(*index.shape, *table.shape[1:])


def halves(stacked: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` entries along the first axis, and the rest; `chunk` would freeze a dynamic batch."""
    return stacked[:count], stacked[count:]
