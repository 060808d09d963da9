"""What a checkpoint file holds, for `matchrt inspect FILE`. safetensors files are described without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matchrt.errors import WeightsError
from matchrt.weights.containers import identify
from matchrt.weights.hashing import file_sha256
from matchrt.weights.names import strip_prefixes
from matchrt.weights.safetensors_header import HeaderEntry, read_header

MIN_GROUPS = 3
"""Keys are grouped by their first component, or by more of them until there are this many groups."""


@dataclass(frozen=True)
class KeyGroup:
    """Keys that begin alike: how many, their elements, and their bytes."""

    name: str
    count: int
    elements: int
    nbytes: int


@dataclass(frozen=True)
class CheckpointDescription:
    """A file's container, wrappers (outermost first), key groups, dtypes and totals.

    `shapes` has every canonical name, for `fit`; `dtypes` counts tensors by dtype; `notes` are entries that are not
    weights; `metadata` is safetensors' free-form text.
    """

    path: Path
    container: str
    size_bytes: int
    sha256: str
    wrappers: tuple[str, ...]
    groups: tuple[KeyGroup, ...]
    dtypes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    tensors: int
    elements: int
    nbytes: int
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-able data, without the single tensors' shapes."""
        data = asdict(self)
        del data["shapes"]
        return {**data, "path": str(self.path), "wrappers": list(self.wrappers), "notes": list(self.notes),
                "groups": [asdict(group) for group in self.groups]}  # fmt: skip


def describe(path: str | Path) -> CheckpointDescription:
    """Describe a weights file; raise `WeightsError` as `readers.read_checkpoint` does."""
    path = Path(path)
    if identify(path) == "safetensors":
        header = read_header(path)
        if not header.tensors:
            raise WeightsError(f"{path} holds no tensors")
        names, prefixes = strip_prefixes(header.tensors)
        entries = {names[name]: entry for name, entry in header.tensors.items()}
        return _description(path, "safetensors", file_sha256(path), prefixes, entries, (), header.metadata)
    from matchrt.weights.readers import read_checkpoint

    checkpoint = read_checkpoint(path)
    entries = {
        name: HeaderEntry(str(t.dtype).removeprefix("torch."), tuple(t.shape), t.numel() * t.element_size())
        for name, t in checkpoint.tensors.items()
    }
    return _description(
        path, checkpoint.container, checkpoint.sha256, checkpoint.wrappers, entries, checkpoint.notes, None
    )


def _description(
    path: Path,
    container: str,
    sha256: str,
    wrappers: tuple[str, ...],
    entries: Mapping[str, HeaderEntry],
    notes: tuple[str, ...],
    metadata: Mapping[str, str] | None,
) -> CheckpointDescription:
    dtypes: dict[str, int] = {}
    for entry in entries.values():
        dtypes[entry.dtype] = dtypes.get(entry.dtype, 0) + 1
    return CheckpointDescription(
        path=path,
        container=container,
        size_bytes=path.stat().st_size,
        sha256=sha256,
        wrappers=wrappers,
        groups=_groups(entries),
        dtypes=dtypes,
        shapes={name: entry.shape for name, entry in entries.items()},
        tensors=len(entries),
        elements=sum(math.prod(entry.shape) for entry in entries.values()),
        nbytes=sum(entry.nbytes for entry in entries.values()),
        notes=notes,
        metadata=metadata,
    )


def _groups(entries: Mapping[str, HeaderEntry]) -> tuple[KeyGroup, ...]:
    grouped: dict[str, list[HeaderEntry]] = {}
    for depth in (1, 2, 3):
        grouped = {}
        for name, entry in entries.items():
            parts = name.split(".")
            grouped.setdefault(".".join(parts[: max(1, min(depth, len(parts) - 1))]), []).append(entry)
        if len(grouped) >= MIN_GROUPS:
            break
    return tuple(
        KeyGroup(name, len(group), sum(math.prod(e.shape) for e in group), sum(e.nbytes for e in group))
        for name, group in grouped.items()
    )
