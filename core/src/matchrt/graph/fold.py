"""Constant folding: whatever does not depend on the inputs is computed now, shapes of fixed axes included."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from matchrt.graph.edit import (
    Names,
    View,
    all_graphs,
    attribute,
    copy_model,
    lift_constants,
    opset,
    remove_dead,
    rename_uses,
    replace_nodes,
    subgraphs,
)
from matchrt.graph.shapes import known_shape_values, partial_values
from matchrt.graph.tidy import tidy
from matchrt.graph.types import Shape, TypeTable, refresh_value_info, shapes
from matchrt.model import GraphPass, Stage

GROWTH_LIMIT = 1 << 20
"""A folded tensor may have this many elements beyond what its inputs had: weights are packed, masks are not unrolled."""

_RANDOM = frozenset(
    ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
)
_KEEP_QUANTISED = frozenset(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"))


def fold(model: ModelProto) -> ModelProto:
    """A copy with constants folded, no-ops gone, equal constants joined, dead nodes dropped. Results are bit-equal.

    Folded are nodes whose inputs are all constant, shape computations of fixed axes, and EyeLike of a fixed shape.
    """
    folded = copy_model(model)
    lift_constants(folded.graph)
    for _ in range(32):
        before = _size(folded)
        _fold_shapes(folded)
        _fold_constants(folded)
        tidy(TypeTable(folded.graph, opset(folded)))
        remove_dead(folded.graph)
        if _size(folded) == before:
            break
    join_constants(folded.graph)
    remove_dead(folded.graph)
    refresh_value_info(folded)
    return folded


def _size(model: ModelProto) -> tuple[int, int, int]:
    graphs = list(all_graphs(model.graph))
    nodes = [n for g in graphs for n in g.node]
    return len(nodes), sum(len(n.input) for n in nodes), hash(tuple(i for n in nodes for i in n.input))


def _fold_shapes(model: ModelProto) -> None:
    known_sizes = shapes(model)
    _fix_reshapes(model, known_sizes)
    values = known_shape_values(model.graph, known_sizes)
    kept = []
    outputs = {o.name for o in model.graph.output}
    for node in model.graph.node:
        name = node.output[0] if node.output else ""
        value = values.get(name) if len(node.output) == 1 and name not in outputs else None
        if value is None and node.op_type == "EyeLike" and name not in outputs:
            value = _eye(node, known_sizes)
        if value is None:
            kept.append(node)
        else:
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    if len(kept) != len(model.graph.node):
        replace_nodes(model.graph, kept)


def _fix_reshapes(model: ModelProto, sizes: Mapping[str, Shape]) -> None:
    """Give Reshape a constant shape where it copies dynamic sizes of its input (0) and computes at most one other (-1)."""
    partial = partial_values(model.graph, sizes)
    names = Names(model)
    constant = {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        wanted = partial.get(node.input[1]) if node.op_type == "Reshape" and node.input[1] not in constant else None
        if not isinstance(wanted, tuple) or attribute(node, "allowzero", 0) or 0 in wanted:
            continue
        own = sizes.get(node.input[0], ())
        fixed = [0 if isinstance(w, str) and i < len(own) and own[i] == w else w for i, w in enumerate(wanted)]
        if sum(not isinstance(f, int) for f in fixed) > 1:
            continue
        numbers = np.asarray([f if isinstance(f, int) else -1 for f in fixed], np.int64)
        name = names.fresh(f"{node.output[0]}_shape")
        model.graph.initializer.append(numpy_helper.from_array(numbers, name))
        node.input[1] = name


def _eye(node: NodeProto, sizes: Mapping[str, Shape]) -> np.ndarray | None:
    shape = sizes.get(node.input[0], ())
    if len(shape) != 2 or not all(isinstance(s, int) for s in shape):
        return None
    code = attribute(node, "dtype", onnx.TensorProto.FLOAT)
    rows, columns = (int(s) for s in shape if s is not None)
    return np.eye(rows, columns, attribute(node, "k", 0)).astype(onnx.helper.tensor_dtype_to_np_dtype(code))


def _fold_constants(model: ModelProto) -> None:
    graph = model.graph
    view = View(graph)
    outputs = view.outputs
    known = set(view.constants)
    chosen: list[NodeProto] = []
    for node in graph.node:
        simple = (
            node.op_type not in _RANDOM | _KEEP_QUANTISED and not subgraphs(node) and not outputs & set(node.output)
        )
        if simple and any(node.input) and all(n in known for n in node.input if n):
            chosen.append(node)
            known.update(node.output)
    values = _compute(model, view, chosen) if chosen else {}
    gone = {id(n) for n in chosen if all(o in values for o in n.output if o)}
    if gone:
        for node in chosen:
            if id(node) in gone:
                graph.initializer.extend(numpy_helper.from_array(values[o], o) for o in node.output if o)
        replace_nodes(graph, [n for n in graph.node if id(n) not in gone])


def _compute(model: ModelProto, view: View, nodes: list[NodeProto]) -> dict[str, np.ndarray]:
    """Values of the nodes' outputs by onnxruntime; what it cannot compute, or what grows too much, is left out."""
    found: dict[str, np.ndarray] = {}
    for node in nodes:
        feeds = {}
        for name in dict.fromkeys(n for n in node.input if n):
            value = found.get(name)
            feeds[name] = view.array(name) if value is None else value
        if any(v is None for v in feeds.values()):
            continue
        known = {n: v for n, v in feeds.items() if v is not None}
        results = _run_node(model, node, known)
        room = sum(v.size for v in known.values()) + GROWTH_LIMIT
        if results is not None and sum(r.size for r in results) <= room:
            found.update(zip((o for o in node.output if o), results, strict=True))
    return found


def _run_node(model: ModelProto, node: NodeProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
    """Outputs of one node, None where onnxruntime has no kernel for it. (onnx's reference operators have errors: not used.)"""
    import onnxruntime as ort

    outputs = [o for o in node.output if o]
    inputs = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in feeds.items()
    ]
    single = onnx.helper.make_model(
        onnx.helper.make_graph([node], "node", inputs, [onnx.ValueInfoProto(name=o) for o in outputs]),
        opset_imports=list(model.opset_import),
        ir_version=model.ir_version,
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(single.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(outputs, dict(feeds))
    except Exception:  # onnxruntime's errors share no base class
        return None
    return results if all(isinstance(r, np.ndarray) for r in results) else None


def join_constants(graph: GraphProto) -> None:
    """Let readers of equal initialisers (type, shape, bytes) share one."""
    inputs = {i.name for i in graph.input}
    outputs = {o.name for o in graph.output}
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.name in inputs or tensor.data_type == onnx.TensorProto.STRING:
            continue
        digest = hashlib.sha256(np.ascontiguousarray(numpy_helper.to_array(tensor)).data).digest()
        kept = first.setdefault((tensor.data_type, tuple(tensor.dims), digest), tensor.name)
        if kept != tensor.name and tensor.name not in outputs:
            same[tensor.name] = kept
    rename_uses(graph, same)


FOLD = GraphPass(
    name="fold-constants",
    reason="what does not depend on the inputs is computed once; builders meet no shape arithmetic and no EyeLike",
    run=fold,
    stage=Stage.PREPARE,
)
