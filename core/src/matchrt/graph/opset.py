"""Write an opset-18 graph at opset 17 or 16: the same operators in the older spelling, dynamic axes kept.

torch's exporter writes opset 18 at least, and onnx's own version converter stops at Pad. TensorRT 8.6 documents opset 17; it does not
refuse a newer one: it overlooks axes that opset 18 turned into inputs.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from matchrt.errors import ExportError
from matchrt.graph.edit import (
    View,
    all_graphs,
    attribute,
    copy_model,
    lift_constants,
    opset,
    remove_dead,
    set_attribute,
)
from matchrt.model import GraphPass, Stage

REDUCTIONS = frozenset(
    ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
)  # fmt: skip
"""Their axes became an input with opset 18; ReduceSum's did with 13."""

NEW_IN_18 = frozenset(
    ("BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im", "GroupNormalization", "Mish", "OptionalGetElement",
     "OptionalHasElement")
)  # fmt: skip


NEW_IN_17 = frozenset(
    ("BlackmanWindow", "DFT", "HammingWindow", "HannWindow", "LayerNormalization", "MelWeightMatrix", "STFT")
)


def to_opset_17(model: ModelProto) -> ModelProto:
    """A copy at opset 17; models of another opset than 18 are returned as they are. Results are equal.

    Raises `ExportError` for what opset 17 cannot say: axes that are computed, operators and modes that are new in 18.
    """
    return model if opset(model) != 18 else lower_opset(model, 17)


def lower_opset(model: ModelProto, wanted: int) -> ModelProto:
    """A copy of an opset-18 model at opset 17 or 16. Raises `ExportError` as `to_opset_17`, and for another pair of opsets."""
    if opset(model) != 18 or wanted not in (16, 17):
        raise ExportError(f"only opset 18 can be lowered, to 16 or 17; asked from {opset(model)} to {wanted}")
    older = copy_model(model)
    lift_constants(older.graph)
    root = View(older.graph)
    for graph in all_graphs(older.graph):
        view = View(graph)
        view.constants = {**root.constants, **view.constants}
        for node in graph.node:
            if node.domain in ("", "ai.onnx"):
                _convert(node, view, wanted)
    for entry in older.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = wanted
    remove_dead(older.graph)
    return older


def _convert(node: NodeProto, view: View, wanted: int) -> None:
    if node.op_type in NEW_IN_18:
        raise _impossible(node, "the operator is new in 18")
    if wanted < 17 and node.op_type in NEW_IN_17:
        raise _impossible(node, "the operator is new in 17")
    if node.op_type in REDUCTIONS:
        _reduction(node, view)
    elif node.op_type == "Split":
        _split(node)
    elif node.op_type == "Resize":
        _only_default(node, "antialias", 0)
        _only_default(node, "keep_aspect_ratio_policy", b"stretch")
        if attribute(node, "axes") is not None:
            raise _impossible(node, "Resize over chosen axes")
    elif node.op_type == "Pad":
        if len(node.input) > 3 and node.input[3]:
            raise _impossible(node, "Pad over chosen axes")
        del node.input[3:]
    elif node.op_type in ("ScatterElements", "ScatterND") and attribute(node, "reduction", b"none") in (b"min", b"max"):
        raise _impossible(node, "reduction by minimum or maximum")


def _reduction(node: NodeProto, view: View) -> None:
    if len(node.input) > 1 and node.input[1]:
        axes = view.array(node.input[1])
        if axes is None:
            raise _impossible(node, "axes that are computed")
        if axes.size:
            set_attribute(node, "axes", axes.reshape(-1).tolist())
    del node.input[1:]
    if "axes" not in [a.name for a in node.attribute] and attribute(node, "noop_with_empty_axes", 0):
        node.op_type = "Identity"
        del node.attribute[:]
    _only_default(node, "noop_with_empty_axes", attribute(node, "noop_with_empty_axes", 0))


def _split(node: NodeProto) -> None:
    """Equal parts need no number at opset 17: the outputs say it. An uneven last part cannot be said without the size."""
    if attribute(node, "num_outputs") is not None:
        _only_default(node, "num_outputs", len(node.output))


def _only_default(node: NodeProto, name: str, default: object) -> None:
    """Drop an attribute that opset 17 lacks; raises unless it has the value that opset 17 implies."""
    value = attribute(node, name, default)
    if value != default:
        raise _impossible(node, f"{name}={value!r}")
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _impossible(node: NodeProto, what: str) -> ExportError:
    return ExportError(
        f"{node.op_type} {node.name!r} cannot be written at an older opset than 18: {what}",
        hint="convert with --opset 18, and build with TensorRT 10 or newer",
    )


TO_OPSET_17 = GraphPass(
    name="opset-17",
    reason="TensorRT 8 overlooks axes that opset 18 turned into inputs",
    run=to_opset_17,
    stage=Stage.PREPARE,
)
