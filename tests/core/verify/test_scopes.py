"""A graph by modules: its borders, and that everything inside can be looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from matchrt.bundle import read_bundle
from matchrt.graph.precision import to_half
from matchrt.verify.scopes import Graph


@pytest.fixture(scope="module")
def small() -> Graph:
    """x ─ a.one ─▶ p ─ a.two ─▶ q ─ (no module) ─▶ y, with x also into a.two."""
    nodes = [
        helper.make_node("Relu", ["x"], ["p"], name="a.one/relu"),
        helper.make_node("Identity", ["p"], ["r"], name="nameless"),
        helper.make_node("Add", ["r", "x"], ["q"], name="a.two/add"),
        helper.make_node("Neg", ["q"], ["y"], name="/neg"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, "n"]) for n in ("x", "y")]
    return Graph(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:])))


def test_what_enters_and_leaves_each_module(small: Graph) -> None:
    scopes = {p: (s.enters, s.leaves) for p, s in small.scopes().items()}
    assert scopes == {
        "": ([], ["y"]),
        "a": (["x"], ["q"]),
        "a.one": (["x"], ["r"]),  # a node without a path belongs to where its input was made
        "a.two": (["r", "x"], ["q"]),
    }


def test_what_a_tensor_is_made_from(small: Graph) -> None:
    sources, nodes = small.behind("y", {"p", "y"})
    assert set(sources) == {"p", "x"}
    assert nodes == [1, 2, 3]
    assert small.place_of([1, 2]) == "a"
    assert small.place_of([2]) == "a.two"
    assert small.place_of([2, 3]) == ""
    assert small.elements("q", {"n": 5}) == 10
    assert small.elements("q", {}) is None


def test_more_outputs_keep_the_graph_valid(small: Graph) -> None:
    model = small.with_outputs(["p", "q", "y"])
    onnx.checker.check_model(model)
    assert [o.name for o in model.graph.output] == ["y", "p", "q"]
    assert [o.name for o in small.model.graph.output] == ["y"]


def test_every_tensor_inside_can_be_an_output_also_in_half(mini_bundle: Path) -> None:
    graph = Graph(onnx.load(str(read_bundle(mini_bundle).graph("matcher"))))
    model = graph.with_outputs(graph.floats)
    half, record = to_half(model)
    assert record.converted > 100
    assert {o.name for o in half.graph.output} >= set(graph.floats)
    kinds = {o.type.tensor_type.elem_type for o in half.graph.output if o.name in set(graph.floats)}
    assert kinds == {TensorProto.FLOAT}
    assert np.all([o.type.tensor_type.HasField("shape") for o in model.graph.output])
