"""to_half: every type written, the right nodes kept, and numbers that half can carry."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_kit import graph, normal, operators, run, run_half, same

from matchrt.errors import PluginError, UsageError
from matchrt.graph.precision import decide, to_half
from matchrt.graph.types import FLOAT, HALF, TypeTable, type_problems
from matchrt.model import PrecisionRule


def types(model: onnx.ModelProto) -> TypeTable:
    return TypeTable(model.graph, 18)


def kept(model: onnx.ModelProto, *rules: PrecisionRule) -> dict[str, str]:
    return {k.node: k.reason for k in to_half(model, rules)[1].kept}


MLP = "(float[n,8] x) => (float[n,4] y) { h = MatMul(x, a) b1 = Add(h, b) r = Relu(b1) y = MatMul(r, c) }"


def mlp() -> onnx.ModelProto:
    return graph(MLP, a=normal(8, 16, seed=1), b=normal(16, seed=2), c=normal(16, 4, seed=3))


def test_compute_is_half_and_the_borders_stay_float32() -> None:
    half, record = to_half(mlp())
    onnx.checker.check_model(half, full_check=True)
    table = types(half)
    assert [table[n] for n in ("h", "b1", "r")] == [HALF] * 3
    assert {t.data_type for t in half.graph.initializer} == {HALF}
    assert [i.type.tensor_type.elem_type for i in (*half.graph.input, *half.graph.output)] == [FLOAT, FLOAT]
    assert record.converted == 3
    assert record.casts == operators(half).count("Cast") == 2
    x = normal(5, 8)
    np.testing.assert_allclose(run_half(half, {"x": x})["y"], run(mlp(), {"x": x})["y"], rtol=2e-2, atol=2e-2)
    assert not np.array_equal(run_half(half, {"x": x})["y"], run(mlp(), {"x": x})["y"])


def test_named_inputs_and_outputs_are_handed_over_in_half() -> None:
    half, record = to_half(mlp(), half_io=["x", "y"])
    assert [i.type.tensor_type.elem_type for i in (*half.graph.input, *half.graph.output)] == [HALF, HALF]
    assert record.casts == 0
    assert run_half(half, {"x": normal(2, 8).astype(np.float16)})["y"].dtype == np.float16
    with pytest.raises(UsageError, match="'z'"):
        to_half(mlp(), half_io=["z"])


def test_a_rule_keeps_what_it_names_and_says_why() -> None:
    rule = PrecisionRule(pattern="^n0", op_types=("MatMul",), reason="because")
    half, record = to_half(mlp(), [rule])
    assert [(k.node, k.operator, k.reason) for k in record.kept] == [("n0_MatMul", "MatMul", "because")]
    assert types(half)["h"] == FLOAT
    assert not to_half(mlp(), [PrecisionRule(pattern="^n0", op_types=("Conv",), reason="")])[1].kept
    other = PrecisionRule(pattern="^n0", reason="", networks=("other",))
    assert not to_half(mlp(), [other], network="mine")[1].kept
    with pytest.raises(PluginError, match="regular expression"):
        to_half(mlp(), [PrecisionRule(pattern="(", reason="")])


def test_one_initialiser_serves_both_worlds() -> None:
    text = "(float[2,4] x) => (float[2,4] y, float[2,4] z) { y = MatMul(x, w) z = MatMul(x, w) }"
    half, _ = to_half(graph(text, w=normal(4, 4)), [PrecisionRule(pattern="n1", reason="")])
    assert {t.name: t.data_type for t in half.graph.initializer} == {"w": FLOAT, "w_half": HALF}


def test_constants_that_half_cannot_carry_keep_their_node() -> None:
    text = """(float[2,4] x) => (float[2,4] y)
              { big = Mul(x, million) back = Add(big, tiny) fine = Mul(back, weights) y = MatMul(fine, square) }"""
    weights = np.array([1.0, 1e-7, -3.0, 0.5], np.float32)
    model = graph(text, million=np.float32(1e6), tiny=np.float32(1e-6), weights=weights, square=normal(4, 4))
    reasons = kept(model)
    assert "1e+06" in reasons["n0_Mul"]
    assert "1e-06" in reasons["n1_Add"]
    assert "n3_MatMul" not in reasons
    infinite = graph(
        "(float[4,4] x) => (float[4,4] y) { h = MatMul(x, w) a = Add(h, m) y = MatMul(a, w) }",
        w=normal(4, 4),
        m=np.full(4, -np.inf, np.float32),
    )
    assert not kept(infinite)


def test_the_grid_of_grid_sample_stays_float32_with_all_that_computes_it() -> None:
    text = """(float[1,4,8,8] x, float[1,8,8,2] flow) => (float[1,4,8,8] y)
              { f = Conv(x, w) s = Mul(flow, two) g = Add(s, half) z = GridSample(f, g) y = Conv(z, w) }"""
    model = graph(text, w=normal(4, 4, 1, 1), two=np.float32(2), half=np.float32(0.5))
    half, _ = to_half(model)
    table = types(half)
    assert [table[n] for n in ("f", "g", "z")] == [HALF, FLOAT, FLOAT]
    reasons = kept(model)
    assert reasons["n1_Mul"].startswith("coordinates")
    assert reasons["n3_GridSample"].startswith("coordinates")
    # The direction that a wrong rewrite would take: a grid in half moves samples of a wide image.
    assert type_problems(half) == []


def test_index_arithmetic_keeps_float32() -> None:
    text = """(float[1,4096] scores, float[1] scale) => (float[1,3] x, float[1,3] f)
              { v, i = TopK(scores, three) c = Cast<to=1>(i) h = Add(c, half) x = Div(h, scale) f = Mul(v, two) }"""
    model = graph(text, three=np.array([3], np.int64), half=np.float32(0.5), two=np.float32(2))
    reasons = kept(model)
    assert reasons["n2_Add"].startswith("index arithmetic")
    scores = np.zeros((1, 4096), np.float32)
    scores[0, [4095, 2049, 2051]] = 3, 2, 1
    feeds = {"scores": scores, "scale": np.ones(1, np.float32)}
    assert run_half(to_half(model)[0], feeds)["x"].tolist() == [[4095.5, 2049.5, 2051.5]]


def test_float_to_integer_keeps_what_leads_to_it() -> None:
    text = "(float[4] x) => (int32[4] y) { m = Mul(x, w) f = Floor(m) y = Cast<to=6>(f) }"
    model = graph(text, w=np.float32(2048.0))
    assert set(kept(model)) == {"n0_Mul", "n1_Floor"}
    assert run_half(to_half(model)[0], {"x": np.array([1, 1.0005, 2, 2.5], np.float32)})["y"].tolist() == [
        2048,
        2049,
        4096,
        5120,
    ]


def test_statistics_keep_float32_with_their_squares_and_divisions() -> None:
    text = """(float[2,64] x) => (float[2,8] y)
              { p = MatMul(x, w) m = ReduceMean(p, axes) c = Sub(p, m) s = Mul(c, c) v = ReduceMean(s, axes) e = Add(v, eps)
                r = Sqrt(e) d = Div(c, r) y = MatMul(d, u) }"""
    model = graph(text, w=300 * normal(64, 64), u=normal(64, 8), axes=np.array([-1]), eps=np.float32(1e-5))
    half, record = to_half(model)
    assert {k.operator for k in record.kept} == {"ReduceMean", "Sub", "Mul", "Add", "Sqrt", "Div"}
    x = normal(2, 64)  # products reach thousands, whose squares half cannot hold
    np.testing.assert_allclose(run_half(half, {"x": x})["y"], run(model, {"x": x})["y"], rtol=0.05, atol=0.05)


def test_a_product_with_a_statistic_keeps_float32() -> None:
    text = """(float[2,64] x) => (float[2,8] y)
              { p = MatMul(x, w) s = Mul(p, p) v = ReduceMean(s, axes) r = Sqrt(v) i = Reciprocal(r) d = Mul(p, i) y = MatMul(d, u) }"""
    reasons = kept(graph(text, w=normal(64, 64), u=normal(64, 8), axes=np.array([-1])))
    assert reasons["n5_Mul"].startswith("statistics: normalises")
    assert "n6_MatMul" not in reasons


def test_softmax_of_attention_is_half_and_any_other_is_not() -> None:
    text = """(float[1,2,8,4] q, float[1,2,4,8] k, float[1,2,8,4] v) => (float[1,2,8,4] y, float[1,2,8,4] z)
              { l = MatMul(q, k) w = Softmax(l) y = MatMul(w, v) z = Softmax(q) }"""
    assert set(kept(graph(text))) == {"n3_Softmax"}


def test_casts_are_shared_and_movement_between_float32_nodes_stays() -> None:
    text = """(float[4,4] x) => (float[4,4] y, float[4,4] a, float[4,4] b)
              { s = Sqrt(x) t = Transpose(s) y = Exp(t) a = MatMul(s, w) b = MatMul(s, w) }"""
    half, record = to_half(graph(text, w=normal(4, 4)))
    assert types(half)["t"] == FLOAT
    assert [n.output[0] for n in half.graph.node if n.op_type == "Cast"] == ["s_half", "a", "b"]
    assert record.casts == 3


def test_existing_casts_are_placed_anew() -> None:
    text = """(float[2,4] x) => (float[2,4] y)
              { a = Cast<to=10>(x) b = Cast<to=1>(a) c = MatMul(b, w) d = Cast<to=10>(c) e = MatMul(d, h) y = Cast<to=1>(e) }"""
    model = graph(text, w=normal(4, 4), h=normal(4, 4).astype(np.float16))
    half, record = to_half(model)
    assert operators(half) == ["Cast", "MatMul", "MatMul", "Cast"]
    assert record.casts == 2
    x = normal(2, 4)
    np.testing.assert_allclose(run_half(half, {"x": x})["y"], run(model, {"x": x})["y"], rtol=1e-2, atol=1e-2)


def test_a_float16_output_stays_float16() -> None:
    model = graph("(float[2,4] x) => (float16[2,4] y) { s = Sqrt(x) y = Cast<to=10>(s) }")
    half, _ = to_half(model)
    assert half.graph.output[0].type.tensor_type.elem_type == HALF
    assert run_half(half, {"x": np.ones((2, 4), np.float32)})["y"].dtype == np.float16


def test_sizes_of_resize_stay_float32() -> None:
    text = """(float[1,4,8,8] x) => (float[1,4,16,16] y)
              { f = Conv(x, w) r = Resize<mode="linear">(f, , scales) y = Conv(r, w) }"""
    model = graph(text, w=normal(4, 4, 1, 1), scales=np.array([1, 1, 2, 2], np.float32))
    half, record = to_half(model)
    assert not record.kept
    assert {t.name: t.data_type for t in half.graph.initializer}["scales"] == FLOAT
    assert run_half(half, {"x": normal(1, 4, 8, 8)})["y"].shape == (1, 4, 16, 16)


def test_constant_nodes_and_masks_take_the_type_of_their_readers() -> None:
    text = """(float[2,4] x, bool[2,4] keep) => (float[2,4] y)
              { c = Constant<value_float=2.0>() p = MatMul(x, w) d = Mul(p, c) m = Cast<to=1>(keep) n = Mul(d, m) y = MatMul(n, w) }"""
    half, record = to_half(graph(text, w=normal(4, 4)))
    assert types(half)["m"] == HALF
    assert not record.kept
    assert record.casts == 2  # the input and the output


def test_bodies_of_control_flow_are_rewritten_inside_their_borders() -> None:
    text = """(float[4,4] x, bool c) => (float[4,4] y) {
        p = MatMul(x, w)
        q = If (c) <
            then_branch = a () => (float[4,4] t) { h = MatMul(p, w) s = Softmax(h) t = MatMul(s, w) },
            else_branch = b () => (float[4,4] e) { e = Sqrt(x) } >
        y = MatMul(q, w) }"""
    model = graph(text, w=normal(4, 4))
    half, record = to_half(model)
    onnx.checker.check_model(half, full_check=True)
    assert {k.operator for k in record.kept} == {"Sqrt"}
    assert same(to_half(half)[0], half)
    x = np.abs(normal(4, 4))
    for c in (True, False):
        feeds = {"x": x, "c": np.array(c)}
        np.testing.assert_allclose(run_half(half, feeds)["y"], run(model, feeds)["y"], rtol=3e-2, atol=3e-2)


def test_loops_carry_their_own_types() -> None:
    text = """(float[4,4] x, int64 n, bool go) => (float[4,4] y) {
        p = MatMul(x, w)
        y = Loop (n, go, p) <body = b (int64 i, bool ci, float[4,4] s) => (bool co, float[4,4] so)
            { co = Identity(ci) m = MatMul(s, w) so = Tanh(m) }> }"""
    model = graph(text, w=normal(4, 4))
    half, _ = to_half(model)
    onnx.checker.check_model(half, full_check=True)
    assert same(to_half(half)[0], half)
    feeds = {"x": normal(4, 4), "n": np.array(3), "go": np.array(True)}
    np.testing.assert_allclose(run_half(half, feeds)["y"], run(model, feeds)["y"], rtol=5e-2, atol=5e-2)


def test_operators_without_a_schema_keep_float32() -> None:
    node = onnx.helper.make_node("Odd", ["x"], ["y"], "odd", domain="my.own")
    value = [onnx.helper.make_tensor_value_info(n, FLOAT, [4]) for n in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]))
    model.opset_import.add(domain="my.own", version=1)
    assert "no schema" in kept(model)["odd"]


def test_decide_agrees_with_the_rewrite() -> None:
    model = graph("(float[4,4] x) => (float[4,4] y) { m = MatMul(x, w) e = Exp(m) y = MatMul(e, w) }", w=normal(4, 4))
    assert decide(model).kept == to_half(model)[1].kept
    assert [k.node for k in decide(model).kept] == ["n1_Exp"]


def test_the_type_checker_finds_a_missing_cast() -> None:
    half, _ = to_half(
        graph("(float[4,4] x) => (float[4,4] y) { m = MatMul(x, w) e = Exp(m) y = Add(e, m) }", w=normal(4, 4))
    )
    assert type_problems(half) == []
    for node in half.graph.node:
        for i, name in enumerate(node.input):
            if name == "e_half" and node.op_type == "Add":
                node.input[i] = "e"
    assert any("Add" in p and "float16" in p for p in type_problems(half))
