"""The header of a safetensors file, checked in full before anything else reads it. No torch.

Format: 8 bytes little-endian header length N, N bytes of JSON `{name: {dtype, shape, data_offsets}}`, then data;
offsets count from the end of the header (huggingface/safetensors README, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matchrt.errors import WeightsError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit on the header."""

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
TORCH_NAMES: Mapping[str, str] = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64",
}  # fmt: skip

_DAMAGED = "Download or copy the file again; if it stays so, it was written wrongly."


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor of the header: dtype as torch spells it, shape, and the bytes it takes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """All tensors by name, in file order, and the free-form metadata."""

    tensors: dict[str, HeaderEntry]
    metadata: dict[str, str]


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check a safetensors header; raise `WeightsError` for a file that is truncated or inconsistent."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8:
            raise WeightsError(f"{path} is truncated: a safetensors file has at least 8 bytes, this one {size}")
        if length > MAX_HEADER_BYTES:
            raise WeightsError(
                f"{path} is not a valid safetensors file: it declares a header of {length} bytes, "
                f"and the format allows {MAX_HEADER_BYTES}",
                hint=_DAMAGED,
            )
        if 8 + length > size:
            raise WeightsError(
                f"{path} is truncated: its header alone needs {8 + length} bytes, the file has {size}", hint=_DAMAGED
            )
        text = file.read(length)
    return _parse(path, text, size)


def _parse(path: Path, text: bytes, size: int) -> SafetensorsHeader:
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
        metadata = content.pop("__metadata__", {})
        entries = {name: _entry(name, value) for name, value in content.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} has a broken safetensors header: {error}", hint=_DAMAGED) from error
    _check_layout(path, entries, size - 8 - len(text), size)
    tensors = {name: entry for name, (entry, _, _) in entries.items()}
    shown = metadata.items() if isinstance(metadata, dict) else ()
    return SafetensorsHeader(tensors, {str(key): str(value) for key, value in shown})


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} is there twice")
    return result


def _entry(name: str, value: dict[str, Any]) -> tuple[HeaderEntry, int, int]:
    dtype, shape = value["dtype"], tuple(value["shape"])
    begin, end = value["data_offsets"]
    if dtype not in DTYPE_BITS:
        raise ValueError(f"{name!r} has the unknown dtype {dtype!r}")
    if any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError(f"{name!r} has a negative or fractional size")
    nbytes, rest = divmod(math.prod(shape) * DTYPE_BITS[dtype], 8)
    if rest or end - begin != nbytes:
        raise ValueError(f"{name!r} is {dtype} {list(shape)} = {nbytes} bytes, but its offsets span {end - begin}")
    return HeaderEntry(TORCH_NAMES.get(dtype, dtype.lower()), shape, nbytes), begin, end


def _check_layout(path: Path, entries: dict[str, tuple[HeaderEntry, int, int]], available: int, size: int) -> None:
    position, previous = 0, ""
    for name, (_, begin, end) in sorted(entries.items(), key=lambda item: item[1][1:]):
        if begin < position:
            raise WeightsError(
                f"{path} has a broken safetensors header: {name!r} overlaps {previous!r} (byte {begin} < {position})",
                hint=_DAMAGED,
            )
        if begin > position:
            raise WeightsError(
                f"{path} has a broken safetensors header: {begin - position} bytes before {name!r} belong to no tensor",
                hint=_DAMAGED,
            )
        position, previous = end, name
    if position > available:
        expected = size - available + position
        raise WeightsError(
            f"{path} is truncated: its header declares {expected} bytes, the file has {size}", hint=_DAMAGED
        )
    if position < available:
        raise WeightsError(
            f"{path} has {available - position} bytes after its last tensor, which a safetensors file cannot have",
            hint=_DAMAGED,
        )
