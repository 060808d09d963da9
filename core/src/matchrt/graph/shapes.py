"""Values of shape computations: integers that follow from fixed axes, through the few operators that exporters write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from matchrt.graph.edit import attribute
from matchrt.graph.types import Shape

Entry = int | str | None
Partial = tuple[Entry, ...] | Entry
"""A vector of sizes, or one: numbers, names of dynamic axes, None where nothing is known."""


def known_shape_values(graph: GraphProto, sizes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Values (int64) of tensors that shape arithmetic computes and that are fully known."""
    partial = partial_values(graph, sizes)
    found = {}
    for node in graph.node:
        for name in node.output:
            value = partial.get(name)
            if isinstance(value, int) or (isinstance(value, tuple) and all(isinstance(v, int) for v in value)):
                found[name] = np.asarray(value, np.int64)
    return found


def partial_values(graph: GraphProto, sizes: Mapping[str, Shape]) -> dict[str, Partial]:
    """What is known of every int64 scalar and vector that is computed from shapes."""
    values: dict[str, Partial] = {}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.INT64 and len(tensor.dims) <= 1 and sum(tensor.dims) <= 64:
            array = numpy_helper.to_array(tensor)
            values[tensor.name] = int(array) if array.ndim == 0 else tuple(int(v) for v in array)
    for node in graph.node:
        value = _value(node, values, sizes)
        if value is not None:
            values[node.output[0]] = value
    return values


def _value(node: NodeProto, values: Mapping[str, Partial], sizes: Mapping[str, Shape]) -> Partial:
    if node.op_type == "Shape":
        shape = sizes.get(node.input[0])
        if shape is None:
            return None
        start: int = attribute(node, "start", 0)
        end: int | None = attribute(node, "end")
        return shape[start:end]
    inputs = [values.get(n) if n else None for n in node.input]
    rule = _RULES.get(node.op_type)
    if rule is None or not inputs or inputs[0] is None:
        return None
    return rule(node, inputs)


def _gather(node: NodeProto, inputs: Sequence[Partial]) -> Partial:
    vector, index = inputs[0], inputs[1]
    if not isinstance(vector, tuple) or attribute(node, "axis", 0) != 0:
        return None
    if isinstance(index, int):
        return vector[index] if -len(vector) <= index < len(vector) else None
    if isinstance(index, tuple) and all(isinstance(i, int) and -len(vector) <= i < len(vector) for i in index):
        return tuple(vector[i] for i in index if isinstance(i, int))
    return None


def _slice(node: NodeProto, inputs: Sequence[Partial]) -> Partial:
    vector = inputs[0]
    bounds = [i[0] if isinstance(i, tuple) and len(i) == 1 else None for i in inputs[1:]]
    if not isinstance(vector, tuple) or len(bounds) < 2 or any(b is None for b in bounds[:2]):
        return None
    start, end, step = bounds[0], bounds[1], bounds[3] if len(bounds) > 3 else 1
    if not isinstance(start, int) or not isinstance(end, int) or step != 1:
        return None
    return vector[start:end]


def _concat(node: NodeProto, inputs: Sequence[Partial]) -> Partial:
    if not all(isinstance(i, tuple) for i in inputs):
        return None
    return tuple(v for i in inputs if isinstance(i, tuple) for v in i)


def _unsqueeze(node: NodeProto, inputs: Sequence[Partial]) -> Partial:
    return (inputs[0],) if isinstance(inputs[0], int | str) else None


def _squeeze(node: NodeProto, inputs: Sequence[Partial]) -> Partial:
    return inputs[0][0] if isinstance(inputs[0], tuple) and len(inputs[0]) == 1 else None


def _reshape(node: NodeProto, inputs: Sequence[Partial]) -> Partial:
    value, shape = inputs[0], inputs[1]
    if shape == () and isinstance(value, tuple) and len(value) == 1:
        return value[0]
    if isinstance(shape, tuple) and len(shape) == 1:
        return (value,) if isinstance(value, int | str) else value
    return None


def _cast(node: NodeProto, inputs: Sequence[Partial]) -> Partial:
    return inputs[0] if attribute(node, "to") == TensorProto.INT64 else None


def _arithmetic(node: NodeProto, inputs: Sequence[Partial]) -> Partial:
    a, b = inputs[0], inputs[1]
    if isinstance(a, int) and isinstance(b, int):
        return _one(node.op_type, a, b)
    if b is None or a is None:
        return None
    left = a if isinstance(a, tuple) else (a,)
    right = b if isinstance(b, tuple) else (b,)
    width = max(len(left), len(right))
    left, right = (v * width if len(v) == 1 else v for v in (left, right))
    if len(left) != len(right):
        return None
    return tuple(_one(node.op_type, x, y) for x, y in zip(left, right, strict=True))


def _one(op_type: str, x: Entry, y: Entry) -> int | None:
    if not isinstance(x, int) or not isinstance(y, int):
        return None
    if op_type == "Div":
        return int(abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)) if y else None
    return {"Add": x + y, "Sub": x - y, "Mul": x * y, "Max": max(x, y), "Min": min(x, y)}[op_type]


_RULES: dict[str, Callable[[NodeProto, Sequence[Partial]], Partial]] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Cast": _cast,
    "Identity": lambda node, inputs: inputs[0],
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min"), _arithmetic),
}
