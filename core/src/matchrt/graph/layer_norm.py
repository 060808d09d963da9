"""LayerNorm by target: one operator where the target has it, explicit float32 arithmetic where it has not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from matchrt.graph.edit import Names, View, attribute, copy_model, opset, remove_dead, replace_nodes, sort_nodes
from matchrt.graph.types import Shape, shapes
from matchrt.model import GraphPass, Stage

OPERATOR_SINCE = 17
"""First opset with LayerNormalization. TensorRT imports it from 8.6."""


@dataclass(frozen=True)
class _Match:
    source: str
    weight: str
    bias: str
    epsilon: float
    output: str


def fuse_layer_norm(model: ModelProto) -> ModelProto:
    """A copy in which (x - mean) / sqrt(variance + eps) · w + b over the last axis is LayerNormalization.

    Recognised are exporters' and our own spellings (square by Mul or Pow; Div, or Mul by Reciprocal). Same function; rounding may
    differ. Below opset 17 nothing changes.
    """
    if opset(model) < OPERATOR_SINCE:
        return model
    fused = copy_model(model)
    sizes, names = shapes(model), Names(model)
    view = View(fused.graph)
    made: dict[str, NodeProto] = {}
    for node in fused.graph.node:
        match = _match(node, view, sizes)
        if match is not None:
            weight = match.weight or _ones(fused, names, sizes, match.source)
            inputs = [match.source, weight, *([match.bias] if match.bias else [])]
            made[match.output] = onnx.helper.make_node(
                "LayerNormalization",
                inputs,
                [match.output],
                names.fresh(f"{node.name}_layer_norm"),
                axis=-1,
                epsilon=match.epsilon,
            )
    if not made:
        return model
    replace_nodes(fused.graph, [made.get(n.output[0], n) if n.output else n for n in fused.graph.node])
    sort_nodes(fused.graph)
    remove_dead(fused.graph)
    return fused


def _ones(model: ModelProto, names: Names, sizes: dict[str, Shape], source: str) -> str:
    name = names.fresh("layer_norm_ones")
    width = next(s for s in sizes[source][::-1] if isinstance(s, int))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(width, np.float32), name))
    return name


def _match(node: NodeProto, view: View, sizes: dict[str, Shape]) -> _Match | None:
    """The whole chain that starts at a ReduceMean over the last axis, if `node` is that."""
    source = node.input[0] if node.input else ""
    shape = sizes.get(source)
    if not _last_axis_mean(node, view, sizes) or not shape or not isinstance(shape[-1], int):
        return None
    centred = _only(view, node.output[0], "Sub")
    if centred is None or list(centred.input) != [source, node.output[0]]:
        return None
    name = centred.output[0]
    readers = view.consumers.get(name, [])
    square = next((r for r in readers if _is_square(r, name, view)), None)
    variance = _only(view, square.output[0], "ReduceMean") if square is not None else None
    if variance is None or not _last_axis_mean(variance, view, sizes):
        return None
    added = _only(view, variance.output[0], "Add")
    epsilon = _other_scalar(added, variance.output[0], view)
    root = _only(view, added.output[0], "Sqrt") if added is not None and epsilon is not None else None
    normed = _normed(view, name, root) if root is not None else None
    if normed is None or len(readers) != 2 or epsilon is None:
        return None
    return _affine(view, source, normed, epsilon, shape[-1])


def _normed(view: View, centred: str, root: NodeProto) -> NodeProto | None:
    divided = _only(view, root.output[0], "Div")
    if divided is not None:
        return divided if list(divided.input) == [centred, root.output[0]] else None
    inverse = _only(view, root.output[0], "Reciprocal")
    product = _only(view, inverse.output[0], "Mul") if inverse is not None else None
    return product if product is not None and centred in product.input else None


def _affine(view: View, source: str, normed: NodeProto, epsilon: float, width: int) -> _Match:
    output, weight, bias = normed.output[0], "", ""
    scaled = _only(view, output, "Mul")
    vector = _other_vector(scaled, output, view, width)
    if scaled is not None and vector and output not in view.outputs:
        output, weight = scaled.output[0], vector
    shifted = _only(view, output, "Add")
    vector = _other_vector(shifted, output, view, width)
    if shifted is not None and vector and output not in view.outputs:
        output, bias = shifted.output[0], vector
    return _Match(source, weight, bias, epsilon, output)


def _only(view: View, name: str, op_type: str) -> NodeProto | None:
    readers = view.consumers.get(name, [])
    ok = len(readers) == 1 and readers[0].op_type == op_type and name not in view.outputs
    return readers[0] if ok else None


def _last_axis_mean(node: NodeProto, view: View, sizes: dict[str, Shape]) -> bool:
    if node.op_type != "ReduceMean" or not attribute(node, "keepdims", 1):
        return False
    axes = attribute(node, "axes")
    if axes is None and len(node.input) > 1:
        axes = view.array(node.input[1])
    rank = len(sizes.get(node.input[0], ()))
    return axes is not None and rank > 0 and [int(a) % rank for a in axes] == [rank - 1]


def _is_square(node: NodeProto, name: str, view: View) -> bool:
    if node.op_type == "Mul":
        return list(node.input) == [name, name]
    return node.op_type == "Pow" and node.input[0] == name and view.scalar(node.input[1]) == 2


def _other_scalar(node: NodeProto | None, name: str, view: View) -> float | None:
    others = [n for n in node.input if n != name] if node is not None else []
    return view.scalar(others[0]) if len(others) == 1 else None


def _other_vector(node: NodeProto | None, name: str, view: View, width: int) -> str:
    others = [n for n in node.input if n != name] if node is not None else []
    value = view.array(others[0]) if len(others) == 1 else None
    return others[0] if value is not None and value.shape == (width,) else ""


def decompose_layer_norm(model: ModelProto) -> ModelProto:
    """A copy in which every LayerNormalization is explicit arithmetic, for importers that lack it. Same function."""
    if not any(n.op_type == "LayerNormalization" for n in model.graph.node):
        return model
    plain = copy_model(model)
    names = Names(plain)
    nodes: list[NodeProto] = []
    for node in plain.graph.node:
        nodes += _decomposed(plain, node, names) if node.op_type == "LayerNormalization" else [node]
    replace_nodes(plain.graph, nodes)
    return plain


def _decomposed(model: ModelProto, node: NodeProto, names: Names) -> list[NodeProto]:
    x, y = node.input[0], node.output[0]
    axis = attribute(node, "axis", -1)
    if axis >= 0:
        axis -= len(shapes(model)[x])
    axes = np.arange(axis, 0, dtype=np.int64)
    made: list[NodeProto] = []

    def constant(stem: str, value: np.ndarray) -> str:
        name = names.fresh(f"{y}_{stem}")
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def add(op_type: str, inputs: list[str], output: str = "") -> str:
        output = output or names.fresh(f"{y}_{op_type}")
        made.append(onnx.helper.make_node(op_type, inputs, [output], names.fresh(f"{node.name}/{op_type}")))
        return output

    def mean(name: str) -> str:
        if opset(model) >= 18:
            return add("ReduceMean", [name, constant("axes", axes)])
        output = add("ReduceMean", [name])
        made[-1].attribute.append(onnx.helper.make_attribute("axes", axes.tolist()))
        return output

    centred = add("Sub", [x, mean(x)])
    variance = mean(add("Mul", [centred, centred]))
    epsilon = constant("epsilon", np.asarray(attribute(node, "epsilon", 1e-5), np.float32))
    normed = [centred, add("Sqrt", [add("Add", [variance, epsilon])])]
    biased = len(node.input) > 2 and bool(node.input[2])
    scaled = add("Mul", [add("Div", normed), node.input[1]], "" if biased else y)
    if biased:
        add("Add", [scaled, node.input[2]], y)
    return made


FUSE_LAYER_NORM = GraphPass(
    name="fuse-layer-norm",
    reason="one operator keeps its statistics in float32 and is one kernel",
    run=fuse_layer_norm,
    stage=Stage.PREPARE,
)
DECOMPOSE_LAYER_NORM = GraphPass(
    name="decompose-layer-norm",
    reason="the target's importer lacks LayerNormalization",
    run=decompose_layer_norm,
    stage=Stage.PREPARE,
)
