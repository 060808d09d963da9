"""A float16 graph on a machine that computes float16 in float32: every half tensor is rounded, in plain float32 operators.

onnxruntime's CPU provider has no half kernels for most operators: it computes in float32 and drops the casts between nodes, so
a half graph looks better there than it is. Here each node whose output is half is followed by a rounding to 11 significant bits
(Veltkamp's splitting: with t = (2^13 + 1) x in float32, t - (t - x) is x rounded), which no optimiser takes out. That is what a
GPU does whose matrix units accumulate in float32. Not emulated: overflow beyond 65504, and the coarser grid below 6.1e-5.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from matchrt.errors import ExportError
from matchrt.graph.edit import copy_model, opset
from matchrt.graph.types import HALF, TypeTable

SPLIT = float(2**13 + 1)
MOVES = frozenset(
    (
        *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool", "Pad", "Relu"),
        *(
            "Reshape",
            "Slice",
            "Split",
            "Squeeze",
            "Tile",
            "Transpose",
            "Unsqueeze",
            "Where",
            "Neg",
            "Abs",
            "Max",
            "Min",
        ),
    )
)
"""Their outputs are numbers of their inputs, which are rounded already."""


def emulate_half(model: ModelProto) -> ModelProto:
    """A float32 copy of a graph from `to_half` that rounds where the graph holds half tensors.

    Raises `ExportError` for a graph with subgraphs, which no shipped matcher has.
    """
    changed = copy_model(model)
    graph = changed.graph
    if any(a.HasField("g") or a.graphs for n in graph.node for a in n.attribute):
        raise ExportError("a graph with subgraphs cannot be emulated in half")
    types = TypeTable(graph, opset(changed))
    half = {name for node in graph.node for name in node.output if types[name] == HALF}
    _widen(graph)
    graph.initializer.append(numpy_helper.from_array(np.array(SPLIT, np.float32), "half_split"))
    nodes: list[NodeProto] = []
    for node in graph.node:
        outputs = [name for name in node.output if name in half]
        nodes += [node, *(() if node.op_type in MOVES else (n for name in outputs for n in _rounding(node, name)))]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    onnx.checker.check_model(changed)
    return changed


def emulate_tf32(model: ModelProto, op_types: Collection[str] = ("MatMul", "Gemm", "Conv")) -> ModelProto:
    """A copy of a float32 graph whose products take operands of 11 significant bits, as TF32 matrix units do; sums stay in float32."""
    changed = copy_model(model)
    graph = changed.graph
    graph.initializer.append(numpy_helper.from_array(np.array(SPLIT, np.float32), "tf32_split"))
    nodes: list[NodeProto] = []
    made: set[str] = set()
    for node in graph.node:
        if node.op_type in op_types:
            for i, name in enumerate(node.input[:2]):
                if name not in made:
                    made.add(name)
                    nodes += _split(name, f"{name}/tf32", "tf32_split", f"{node.name}_tf32_{i}")
                node.input[i] = f"{name}/tf32"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(changed)
    return changed


def _split(source: str, target: str, constant: str, name: str) -> list[NodeProto]:
    """Nodes that round `source` to 11 significant bits into `target`; `name` begins their names."""
    scaled, low = f"{target}/scaled", f"{target}/low"
    return [
        helper.make_node("Mul", [source, constant], [scaled], name=f"{name}_scaled"),
        helper.make_node("Sub", [scaled, source], [low], name=f"{name}_low"),
        helper.make_node("Sub", [scaled, low], [target], name=f"{name}_rounded"),
    ]


def _rounding(node: NodeProto, name: str) -> list[NodeProto]:
    """Rename the output of `node` and put the rounded one in its place."""
    exact = f"{name}/exact"
    node.output[list(node.output).index(name)] = exact
    return _split(exact, name, "half_split", f"{node.name or exact}_half_{list(node.output).index(exact)}")


def _widen(graph: onnx.GraphProto) -> None:
    """Write every half constant and type as float32."""
    for tensor in graph.initializer:
        if tensor.data_type == HALF:
            tensor.CopyFrom(_float32(tensor))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type in ("Cast", "RandomNormal") and attribute.name in ("to", "dtype") and attribute.i == HALF:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t") and attribute.t.data_type == HALF:
                attribute.t.CopyFrom(_float32(attribute.t))


def _float32(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
