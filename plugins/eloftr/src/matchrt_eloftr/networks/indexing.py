"""Indexing that every exporter writes as one Gather along the first axis."""

from __future__ import annotations

from torch import Tensor


def take(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]` for a table (N, ...) and an integer index of any shape, without negative indices."""
    return table.index_select(0, index.reshape(-1)).reshape(*index.shape, *table.shape[1:])
