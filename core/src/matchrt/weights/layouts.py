"""Joining and cutting tensors along an axis, plainly or with interleaved rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from matchrt.weights.rules import Interleave


def join(parts: Sequence[torch.Tensor], axis: int, layout: Interleave | None) -> torch.Tensor:
    """Join `parts` along `axis`; raise `ValueError` when their shapes or dtypes do not allow it.

    With a layout, n parts of R rows each become n·R rows in the layout's order (see `Interleave`).
    """
    if len({part.dtype for part in parts}) > 1:
        raise ValueError("dtypes differ: " + ", ".join(str(part.dtype) for part in parts))
    rows_first = [_rows_first(part, axis) for part in parts]
    if len({rows.shape[1:] for rows in rows_first}) > 1:
        raise ValueError("shapes differ: " + ", ".join(str(list(part.shape)) for part in parts))
    rows, rest = rows_first[0].shape[0], rows_first[0].shape[1:]
    if layout is not None and len({part.shape for part in rows_first}) > 1:
        raise ValueError("interleaved parts need the same number of rows")
    dim = _head_size(rows, layout.heads) if layout is not None else 0
    if parts[0].device.type == "meta":  # shapes only, for `fit`; torch.cat would first import a thousand modules
        joined = parts[0].new_empty((sum(part.shape[0] for part in rows_first), *rest))
        return torch.movedim(joined, 0, axis)
    if layout is None:
        return torch.cat(list(parts), dim=axis)
    stacked = torch.stack(rows_first).reshape(len(parts), layout.heads, dim, *rest)
    order = [("part", "head", "dim").index(word) for word in layout.order.split()]
    joined = stacked.permute(*order, *range(3, stacked.ndim)).reshape(len(parts) * rows, *rest)
    return torch.movedim(joined, 0, axis).contiguous()


def split(
    tensor: torch.Tensor, count: int, axis: int, sizes: Sequence[int] | None, layout: Interleave | None
) -> list[torch.Tensor]:
    """Undo `join`: cut `tensor` along `axis` into `count` parts; raise `ValueError` when it does not divide."""
    rows_first = _rows_first(tensor, axis)
    total, rest = rows_first.shape[0], rows_first.shape[1:]
    if sizes is not None:
        if sum(sizes) != total:
            raise ValueError(f"the sizes {tuple(sizes)} add up to {sum(sizes)}, axis {axis} has {total}")
        return [part.contiguous() for part in torch.split(tensor, list(sizes), dim=axis)]
    if total % count:
        raise ValueError(f"axis {axis} has {total} rows, which {count} parts do not divide")
    if layout is None:
        return [part.contiguous() for part in torch.split(tensor, total // count, dim=axis)]
    dim = _head_size(total // count, layout.heads)
    sizes_by_word = {"part": count, "head": layout.heads, "dim": dim}
    words = layout.order.split()
    viewed = rows_first.reshape(*(sizes_by_word[word] for word in words), *rest)
    order = [words.index(word) for word in ("part", "head", "dim")]
    parts = viewed.permute(*order, *range(3, viewed.ndim)).reshape(count, total // count, *rest)
    return [torch.movedim(part, 0, axis).contiguous() for part in parts]


def _rows_first(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    if not -tensor.ndim <= axis < tensor.ndim:
        raise ValueError(f"a tensor of shape {list(tensor.shape)} has no axis {axis}")
    return torch.movedim(tensor, axis, 0)


def _head_size(rows: int, heads: int) -> int:
    dim, rest = divmod(rows, heads)
    if rest:
        raise ValueError(f"{rows} rows do not divide into {heads} heads")
    return dim
