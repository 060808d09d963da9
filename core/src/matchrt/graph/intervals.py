"""Bounds of integer tensors: which values an INT64 tensor can hold at all."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from matchrt.graph.edit import INT32_MAX, View, attribute
from matchrt.graph.types import INT64, Shape, TypeTable

Interval = tuple[int, int]
INTEGERS: dict[int, Interval] = {TensorProto.BOOL: (0, 1), TensorProto.INT32: (-(2**31), INT32_MAX), TensorProto.INT8: (-128, 127),
            TensorProto.UINT8: (0, 255), TensorProto.INT16: (-32768, 32767)}  # fmt: skip
_CARRY = frozenset(
    ("Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Gather",
     "GatherElements", "GatherND", "Expand", "Tile", "ReduceMax", "ReduceMin")
)  # fmt: skip


def intervals(graph: GraphProto, types: TypeTable, sizes: Mapping[str, Shape]) -> dict[str, Interval]:
    """[lowest, highest] of the integer tensors of one graph for which that follows.

    A size is at most 2^31 - 1 (no builder takes more elements), so an index is at most 2^31 - 2. Graph inputs have no bounds of
    their own beyond their type.
    """
    known: dict[str, Interval] = {}
    view = View(graph)
    for name, tensor in view.constants.items():
        if tensor.data_type in (INT64, *INTEGERS):
            value = numpy_helper.to_array(tensor)
            if value.size:
                known[name] = (int(value.min()), int(value.max()))
    for value in graph.input:
        bounds = INTEGERS.get(value.type.tensor_type.elem_type)
        if bounds:
            known[value.name] = bounds
    for node in graph.node:
        _bound(node, known, types, sizes)
    return known


def _bound(node: NodeProto, known: dict[str, Interval], types: TypeTable, sizes: Mapping[str, Shape]) -> None:
    inputs = [known.get(n) for n in node.input]
    if node.op_type == "TopK":
        known[node.output[1]] = (0, _axis_size(node, sizes) - 1)
        return
    value = _result(node, inputs, types, sizes)
    if value is None and types[node.output[0]] in INTEGERS:
        value = INTEGERS[types[node.output[0]]]
    if value is not None:
        for name in node.output:
            known[name] = value


def _result(
    node: NodeProto, inputs: list[Interval | None], types: TypeTable, sizes: Mapping[str, Shape]
) -> Interval | None:
    if node.op_type == "Shape" or node.op_type == "Size":
        return 0, INT32_MAX
    if node.op_type in ("ArgMax", "ArgMin"):
        return 0, _axis_size(node, sizes) - 1
    if node.op_type == "NonZero":
        return 0, INT32_MAX - 1
    if node.op_type == "Cast":
        return inputs[0] or INTEGERS.get(types[node.input[0]])
    if node.op_type in _CARRY:
        data = inputs if node.op_type == "Concat" else inputs[:1]
        return _hull(data)
    if node.op_type == "Where":
        return _hull(inputs[1:])
    if node.op_type == "Range":
        return _range(inputs)
    if len(inputs) == 2 and inputs[0] is not None and inputs[1] is not None:
        return _binary(node, inputs[0], inputs[1])
    if node.op_type == "Neg" and inputs[0] is not None:
        return -inputs[0][1], -inputs[0][0]
    if node.op_type == "Abs" and inputs[0] is not None:
        return 0, max(abs(inputs[0][0]), abs(inputs[0][1]))
    return None


def _binary(node: NodeProto, a: Interval, b: Interval) -> Interval | None:
    if node.op_type == "Add":
        return a[0] + b[0], a[1] + b[1]
    if node.op_type == "Sub":
        return a[0] - b[1], a[1] - b[0]
    if node.op_type == "Mul":
        products = [x * y for x in a for y in b]
        return min(products), max(products)
    if node.op_type == "Div" and b[0] > 0:
        largest = max(abs(a[0]), abs(a[1]))
        return (0 if a[0] >= 0 else -largest), (largest if a[1] > 0 else 0)
    if node.op_type == "Mod" and b[0] > 0:
        return (0, b[1] - 1) if not attribute(node, "fmod", 0) or a[0] >= 0 else (1 - b[1], b[1] - 1)
    if node.op_type == "Min":
        return min(a[0], b[0]), min(a[1], b[1])
    if node.op_type == "Max":
        return max(a[0], b[0]), max(a[1], b[1])
    return None


def _range(inputs: list[Interval | None]) -> Interval | None:
    start, limit = inputs[0], inputs[1]
    if start is None or limit is None:
        return None
    return min(start[0], limit[0]), max(start[1], limit[1])


def _hull(parts: list[Interval | None]) -> Interval | None:
    if not parts or any(p is None for p in parts):
        return None
    known = [p for p in parts if p is not None]
    return min(p[0] for p in known), max(p[1] for p in known)


def _axis_size(node: NodeProto, sizes: Mapping[str, Shape]) -> int:
    shape = sizes.get(node.input[0], ())
    axis = attribute(node, "axis", -1 if node.op_type == "TopK" else 0)
    size = shape[axis] if -len(shape) <= axis < len(shape) else None
    return size if isinstance(size, int) and size > 0 else INT32_MAX
