"""Find where an ONNX file keeps external data, by walking its protobuf encoding: no onnx package, no weights in memory.

Field numbers from onnx.proto (ModelProto.graph = 7, GraphProto.node = 1, .initializer = 5, .sparse_initializer = 15,
NodeProto.attribute = 5, AttributeProto.t = 5, .g = 6, .tensors = 10, .graphs = 11, .sparse_tensor = 22, .sparse_tensors = 23,
SparseTensorProto.values = 1, .indices = 2, TensorProto.external_data = 13, ModelProto.functions = 25, FunctionProto.node = 7).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from matchrt.errors import BundleError

_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function", 20: "training"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def external_locations(path: Path) -> set[str]:
    """The `location` of every external tensor of the ONNX file. Raises `BundleError` where the file is no ONNX."""
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return set(_walk(data, 0, len(data), "model", 0))
        except (ValueError, IndexError, UnicodeDecodeError) as error:
            raise BundleError(f"{path} is not an ONNX file: {error}") from None


def _walk(data: mmap.mmap, start: int, end: int, kind: str, depth: int) -> Iterator[str]:
    if depth > 64:
        raise ValueError("nested too deep")
    for number, begin, stop in _fields(data, start, end):
        child = _CHILDREN[kind].get(number)
        if child == "entry":
            yield from _location(data, begin, stop)
        elif child is not None:
            yield from _walk(data, begin, stop, child, depth + 1)


def _location(data: mmap.mmap, start: int, end: int) -> Iterator[str]:
    entry = {number: data[begin:stop] for number, begin, stop in _fields(data, start, end)}
    if entry.get(1) == b"location":
        yield entry.get(2, b"").decode("utf-8")


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, first byte, end) of every length-delimited field."""
    while position < end:
        key, position = _varint(data, position, end)
        wire = key & 7
        if wire == 0:
            _, position = _varint(data, position, end)
        elif wire == 2:
            length, position = _varint(data, position, end)
            if length > end - position:
                raise ValueError("a field runs past its end")
            yield key >> 3, position, position + length
            position += length
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")
    if position != end:
        raise ValueError("a field runs past its end")


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= end or shift > 63:
            raise ValueError("a number runs past its end")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
