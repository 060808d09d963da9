"""Lowered graphs compute the same, and what cannot be lowered is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from matchrt.errors import ExportError
from matchrt.graph.opset import lower_opset

X = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)


def model_of(
    *nodes: onnx.NodeProto, opset: int = 18, inferred: bool = True, **constants: np.ndarray
) -> onnx.ModelProto:
    """A model with input x (2, 6, 4) and the outputs of its last node."""
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in nodes[-1].output]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        outputs,
        initializer=[numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if inferred:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})


def axes(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


KINDS = ["Max", "Min", "Mean", "Prod", "L1", "L2", "LogSumExp", "SumSquare", "Sum"]
MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    **{
        f"Reduce{k}": lambda k=k: model_of(helper.make_node(f"Reduce{k}", ["x", "a"], ["y"], keepdims=0), a=axes(1, -1))  # type: ignore[misc]
        for k in KINDS
    },
    "reduce everything": lambda: model_of(helper.make_node("ReduceMax", ["x"], ["y"])),
    "axes from a Constant node": lambda: model_of(
        helper.make_node("Constant", [], ["a"], value=numpy_helper.from_array(axes(1))),
        helper.make_node("ReduceMean", ["x", "a"], ["y"]),
    ),
    "split in equal parts": lambda: model_of(helper.make_node("Split", ["x"], ["p", "q", "r"], axis=1, num_outputs=3)),
    "split by sizes": lambda: model_of(helper.make_node("Split", ["x", "s"], ["p", "q"], axis=1), s=axes(1, 5)),
    "pad": lambda: model_of(
        helper.make_node("Pad", ["x", "p", "v"], ["y"]), p=axes(0, 1, 2, 0, 3, 0), v=np.array(7, np.float32)
    ),
    "layer normalisation": lambda: model_of(
        helper.make_node("LayerNormalization", ["x", "g"], ["y"]), g=np.ones(4, np.float32)
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("opset", [16, 17])
def test_a_lowered_graph_computes_the_same(name: str, opset: int) -> None:
    model = MODELS[name]()
    if name == "layer normalisation" and opset == 16:
        with pytest.raises(ExportError, match=r"LayerNormalization.*the operator is new in 17"):
            lower_opset(model, opset)
        return
    before = model.SerializeToString()
    lowered = lower_opset(model, opset)
    assert model.SerializeToString() == before
    assert [o.version for o in lowered.opset_import] == [opset]
    onnx.checker.check_model(lowered, full_check=True)
    for a, b in zip(run(model), run(lowered), strict=True):
        assert np.array_equal(a, b)


def test_what_cannot_be_lowered_is_named() -> None:
    computed = model_of(
        helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
        helper.make_node("Sub", ["s", "one"], ["a"], name="computes_axes"),
        helper.make_node("ReduceMax", ["x", "a"], ["y"], name="reduces"),
        one=axes(1),
        inferred=False,
    )
    with pytest.raises(ExportError, match=r"ReduceMax 'reduces' cannot be written .*: axes that are computed"):
        lower_opset(computed, 17)
    padded = model_of(helper.make_node("Pad", ["x", "p", "", "a"], ["y"], name="pads"), p=axes(1, 1), a=axes(2))
    with pytest.raises(ExportError, match="Pad over chosen axes"):
        lower_opset(padded, 17)
    mish = model_of(helper.make_node("Mish", ["x"], ["y"]))
    with pytest.raises(ExportError, match="the operator is new in 18"):
        lower_opset(mish, 17)
    with pytest.raises(ExportError, match="only opset 18 can be lowered"):
        lower_opset(model_of(helper.make_node("Relu", ["x"], ["y"]), opset=17), 16)
