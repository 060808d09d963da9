"""Opset 18 written as 17: equal results, and an error where 17 cannot say it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_kit import graph, normal, run, same

from matchrt.errors import ExportError
from matchrt.graph.linter import lint
from matchrt.graph.opset import to_opset_17
from matchrt.graph.prepare import prepare
from matchrt.model import Target

OLD = Target(backend="tensorrt", version="8.6.1")


def test_axes_become_attributes_and_results_stay() -> None:
    text = """(float[2,4,6] x) => (float[2,4,1] a, float[1,4,1] b, float[2,2,6] c, float[2,4,12] d)
              { m = ReduceMean(x, last) a = ReduceMax<keepdims=1>(m, last) b = ReduceL2(x, both) c, e = Split<axis=1, num_outputs=2>(x)
                s = ReduceSum(x, last) d = Resize<mode="linear">(x, , scales) }"""
    model = graph(text, last=np.array([-1]), both=np.array([0, 2]), scales=np.array([1, 1, 2], np.float32))
    older = to_opset_17(model)
    onnx.checker.check_model(older, full_check=True)
    assert older.opset_import[0].version == 17
    assert same(to_opset_17(older), older)
    feeds = {"x": normal(2, 4, 6)}
    before, after = run(model, feeds), run(older, feeds)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_bodies_are_converted_too() -> None:
    text = """(float[2,3] x, bool c) => (float[2,1] y) { y = If (c) <
        then_branch = a () => (float[2,1] t) { t = ReduceMean(x, last) },
        else_branch = b () => (float[2,1] e) { e = ReduceMax(x, last) }> }"""
    model = graph(text, last=np.array([1]))
    older = to_opset_17(model)
    onnx.checker.check_model(older, full_check=True)
    feeds = {"x": normal(2, 3), "c": np.array(True)}
    np.testing.assert_array_equal(run(older, feeds)["y"], run(model, feeds)["y"])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("(float[2,3] x, int64[1] a) => (float[2,1] y) { y = ReduceMean(x, a) }", "computed"),
        ("(float[2,3] x) => (float[2,3] y) { y = Mish(x) }", "new in 18"),
        ('(float[1,1,4,4] x) => (float[1,1,2,2] y) { y = Resize<mode="linear", antialias=1>(x, , s) }', "antialias"),
    ],
)
def test_what_17_cannot_say_is_an_error(text: str, what: str) -> None:
    constants = {"s": np.array([1, 1, 0.5, 0.5], np.float32)} if "Resize" in text else {}
    with pytest.raises(ExportError, match=what):
        to_opset_17(graph(text, **constants))


def test_tensorrt_8_gets_a_graph_that_its_linter_passes() -> None:
    model = graph("(float[2,8] x) => (float[2,1] y) { y = ReduceMean(x, a) }", a=np.array([1]))
    assert [f.severity for f in lint(model, OLD)] == ["error"]
    prepared = prepare(model, OLD)
    assert "opset-17" in prepared.applied
    assert lint(prepared.model, OLD) == []
    assert "opset-17" not in prepare(model, Target(backend="tensorrt", version="10.3")).applied
