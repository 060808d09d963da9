"""Lower a graph from opset 18 to 17 or 16, where what changed between them can be written the older way.

torch's exporter writes opset 18 at least; TensorRT 8.6 reads up to 17. onnx's own version converter stops at Pad. Differences
(onnx's Changelog): 18 moved the axes of the Reduce family to an input, gave Split a count of outputs, Pad axes, Resize
antialiasing and axes, and the Scatter family more reductions; 17 brought LayerNormalization.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

from matchrt.errors import ExportError

OLDEST = 16
_MIN_OPSET = {
    **dict.fromkeys(("LayerNormalization", "DFT", "STFT", "BlackmanWindow", "HannWindow", "HammingWindow"), 17),
    **dict.fromkeys(
        ("Mish", "CenterCropPad", "Col2Im", "GroupNormalization", "BitwiseAnd", "BitwiseOr", "BitwiseNot"), 18
    ),
}
_REDUCTIONS = frozenset(
    f"Reduce{kind}" for kind in ("Max", "Min", "Mean", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
)
_SINCE_18 = {"Resize": ("antialias", "axes", "keep_aspect_ratio_policy")}


def lower_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A copy of `model` (opset 18) at `opset` (16 or 17). Raises `ExportError` naming the node that cannot be lowered."""
    written = next(o.version for o in model.opset_import if o.domain == "")
    if written != 18 or not OLDEST <= opset < 18:
        raise ExportError(f"only opset 18 can be lowered, to 16 or 17; asked from {written} to {opset}")
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    graph = lowered.graph
    constants = _constants(graph)
    for node in graph.node:
        if any(a.HasField("g") for a in node.attribute):
            raise _refusal(node, "it holds a subgraph", opset)
        if _MIN_OPSET.get(node.op_type, 0) > opset:
            raise _refusal(node, f"the operator exists since opset {_MIN_OPSET[node.op_type]}", opset)
        change = _CHANGES.get(node.op_type)
        if node.op_type in _REDUCTIONS:
            _lower_reduction(node, constants, opset)
        elif change is not None:
            change(node, constants, opset)
    _drop_unused(graph)
    for entry in lowered.opset_import:
        if entry.domain == "":
            entry.version = opset
    return lowered


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    found = {
        t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL
    }
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _refusal(node: onnx.NodeProto, why: str, opset: int) -> ExportError:
    return ExportError(
        f"node {node.name or node.output[0]!r} ({node.op_type}) cannot be written at opset {opset}: {why}"
    )


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((a for a in node.attribute if a.name == name), None)


def _remove(node: onnx.NodeProto, name: str) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _lower_reduction(node: onnx.NodeProto, constants: dict[str, np.ndarray], opset: int) -> None:
    """Move constant axes from the second input to the attribute."""
    empty_is_identity = _attribute(node, "noop_with_empty_axes")
    _remove(node, "noop_with_empty_axes")
    if len(node.input) < 2 or not node.input[1]:
        if empty_is_identity is not None and empty_is_identity.i:
            raise _refusal(node, "it reduces over no axes", opset)
        del node.input[1:]
        return
    if node.input[1] not in constants:
        raise _refusal(node, "its axes are computed", opset)
    axes = constants[node.input[1]].reshape(-1).tolist()
    if not axes and empty_is_identity is not None and empty_is_identity.i:
        raise _refusal(node, "it reduces over no axes", opset)
    del node.input[1:]
    if axes:
        node.attribute.append(onnx.helper.make_attribute("axes", axes))


def _lower_split(node: onnx.NodeProto, constants: dict[str, np.ndarray], opset: int) -> None:
    """Without sizes, the older form splits equally into as many parts as there are outputs; the newer may leave a smaller last part."""
    _remove(node, "num_outputs")


def _lower_pad(node: onnx.NodeProto, constants: dict[str, np.ndarray], opset: int) -> None:
    if len(node.input) > 3 and node.input[3]:
        raise _refusal(node, "it pads chosen axes", opset)
    del node.input[3:]


def _lower_resize(node: onnx.NodeProto, constants: dict[str, np.ndarray], opset: int) -> None:
    for name in _SINCE_18["Resize"]:
        found = _attribute(node, name)
        if found is not None and (found.i or found.ints or found.s not in (b"", b"stretch")):
            raise _refusal(node, f"it uses {name}", opset)
        _remove(node, name)


def _check_scatter(node: onnx.NodeProto, constants: dict[str, np.ndarray], opset: int) -> None:
    reduction = _attribute(node, "reduction")
    if reduction is not None and reduction.s not in (b"none", b"add", b"mul"):
        raise _refusal(node, f"it reduces by {reduction.s.decode()}", opset)


_CHANGES: dict[str, Callable[[onnx.NodeProto, dict[str, np.ndarray], int], None]] = {
    "Split": _lower_split,
    "Pad": _lower_pad,
    "Resize": _lower_resize,
    "ScatterElements": _check_scatter,
    "ScatterND": _check_scatter,
}


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove initialisers and constants that nothing reads any more."""
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    for constant in [n for n in graph.node if n.op_type == "Constant" and n.output[0] not in read]:
        graph.node.remove(constant)
    for tensor in [t for t in graph.initializer if t.name not in read]:
        graph.initializer.remove(tensor)
