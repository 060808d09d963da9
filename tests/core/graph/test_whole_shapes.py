"""Shape with bounds, written out for TensorRT 8: the same numbers, and nothing left that the linter refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from matchrt.graph.linter import lint
from matchrt.graph.prepare import prepare
from matchrt.graph.whole_shapes import whole_shapes
from matchrt.model import Target

OLD = Target(backend="tensorrt", version="8.6.0")
BOUNDS: list[dict[str, int]] = [
    {},
    {"end": 1},
    {"start": 1},
    {"start": -2},
    {"start": 1, "end": -1},
    {"end": 9},
    {"start": 3, "end": 2},
]


def graph(bounds: dict[str, int]) -> onnx.ModelProto:
    nodes = [helper.make_node("Shape", ["x"], ["s"], name="shape", **bounds)]
    value = helper.make_tensor_value_info
    inputs, outputs = [value("x", TensorProto.FLOAT, ["a", "b", 5])], [value("s", TensorProto.INT64, [None])]
    made = helper.make_graph(nodes, "shapes", inputs, outputs)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.zeros((2, 3, 5), np.float32)})[0]


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_the_sizes_are_the_same(bounds: dict[str, int]) -> None:
    expected = run(graph(bounds))
    changed = whole_shapes(graph(bounds))
    onnx.checker.check_model(changed, full_check=True)
    np.testing.assert_array_equal(run(changed), expected)
    assert all(not n.attribute for n in changed.graph.node if n.op_type == "Shape")
    again = whole_shapes(onnx.ModelProto.FromString(changed.SerializeToString()))
    assert again.SerializeToString() == changed.SerializeToString()


def test_the_linter_refuses_bounds_for_tensorrt_8_alone_and_the_prepared_graph_has_none() -> None:
    found = [f for f in lint(graph({"end": 1}), OLD) if f.severity == "error"]
    assert [f.operator for f in found] == ["Shape"]
    assert "overlooked" in found[0].limit
    assert lint(graph({"end": 1}), Target(backend="tensorrt", version="10.3.0")) == []
    prepared = prepare(graph({"end": 1}), OLD)
    assert "whole-shapes" in prepared.applied
    assert [f for f in lint(prepared.model, OLD) if f.severity == "error"] == []
