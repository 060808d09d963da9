"""Constant folding and clean-up: same results from fewer nodes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_kit import graph, normal, operators, run, same

from matchrt.errors import UsageError
from matchrt.graph.fold import fold
from matchrt.graph.freeze import dynamic_axes, freeze


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def check(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> onnx.ModelProto:
    folded = fold(model)
    onnx.checker.check_model(folded, full_check=True)
    assert same(fold(folded), folded)
    before, after = run(model, feeds), run(folded, feeds)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
        assert after[name].dtype == value.dtype
    return folded


def test_constant_branches_are_computed() -> None:
    text = "(float[4] x) => (float[4] y) { c = Constant<value_float=2.0>() a = Add(w, c) b = Sqrt(a) y = Mul(x, b) }"
    folded = check(graph(text, w=np.ones(4, np.float32)), {"x": normal(4)})
    assert operators(folded) == ["Mul"]
    assert len(folded.graph.initializer) == 1


def test_what_would_grow_the_file_is_left() -> None:
    text = "(float[1] x) => (float[2048,2048] y) { c = Expand(one, s) y = Add(x, c) }"
    folded = check(graph(text, one=np.ones(1, np.float32), s=ints(2048, 2048)), {"x": normal(1)})
    assert operators(folded) == ["Expand", "Add"]


def test_random_numbers_are_not_frozen() -> None:
    folded = fold(graph("(float[4] x) => (float[4] y) { r = RandomNormalLike(c) y = Add(x, r) }", c=normal(4)))
    assert operators(folded) == ["RandomNormalLike", "Add"]


def test_shape_arithmetic_of_fixed_axes_goes() -> None:
    text = """(float[n,6,8] x) => (float[n,3,16] y)
              { s = Shape(x) h = Gather(s, one) d = Div(h, two) u = Unsqueeze(d, zero) b = Slice(s, start, one1)
                w = Slice(s, two1, three1) ww = Mul(w, two1) t = Concat<axis=0>(b, u, ww) y = Reshape(x, t) }"""
    constants = {"one": np.array(1), "two": np.array(2), "zero": ints(0), "start": ints(0)}
    model = graph(text, **constants, one1=ints(1), two1=ints(2), three1=ints(3))
    folded = check(model, {"x": normal(5, 6, 8)})
    assert operators(folded) == ["Reshape"]
    (shape,) = folded.graph.initializer
    assert onnx.numpy_helper.to_array(shape).tolist() == [0, 3, 16]  # 0 copies the dynamic batch


def test_two_unknown_sizes_keep_the_computation() -> None:
    text = """(float[n,m] x, float[m,n] z) => (float[m,n] y)
              { s = Shape(z) r = Reshape(x, s) y = Add(r, z) }"""
    folded = check(graph(text), {"x": normal(2, 3), "z": normal(3, 2)})
    assert operators(folded) == ["Shape", "Reshape", "Add"]


def test_eye_like_of_a_fixed_shape_becomes_a_constant() -> None:
    text = "(float[3,4] x) => (float[3,4] y) { e = EyeLike<k=1>(x) y = Add(x, e) }"
    assert operators(check(graph(text), {"x": normal(3, 4)})) == ["Add"]
    dynamic = graph("(float[n,n] x) => (float[n,n] y) { e = EyeLike(x) y = Add(x, e) }")
    assert operators(fold(dynamic)) == ["EyeLike", "Add"]
    assert operators(fold(freeze(dynamic, {"n": 3}))) == ["Add"]


def test_nodes_that_do_nothing_go() -> None:
    text = """(float[2,3,4] x) => (float[2,3,4] y, float[2,12] z)
              { i = Identity(x) c = Cast<to=1>(i) t = Transpose<perm=[0,2,1]>(c) u = Transpose<perm=[0,2,1]>(t)
                r = Reshape(u, s6) q = Unsqueeze(r, zero) z = Reshape(q, s12) y = Neg(u) }"""
    folded = check(graph(text, s6=ints(6, 4), s12=ints(2, 12), zero=ints(0)), {"x": normal(2, 3, 4)})
    assert sorted(operators(folded)) == ["Neg", "Reshape"]


def test_an_output_that_only_renames_an_input_stays() -> None:
    folded = check(graph("(float[2] x) => (float[2] y, float[2] z) { y = Identity(x) z = Neg(y) }"), {"x": normal(2)})
    assert [o.name for o in folded.graph.output] == ["y", "z"]


def test_a_second_reshape_that_copies_sizes_is_left() -> None:
    text = "(float[2,6] x) => (float[3,2,2] y) { r = Reshape(x, a) y = Reshape(r, b) }"
    folded = check(graph(text, a=ints(3, 4), b=ints(0, 2, 2)), {"x": normal(2, 6)})
    assert operators(folded) == ["Reshape", "Reshape"]


def test_equal_constants_are_joined_and_unequal_types_are_not() -> None:
    text = "(float[2] x) => (float[2] y, int64[2] z) { a = Add(x, p) y = Add(a, q) i = Cast<to=7>(x) z = Add(i, r) }"
    zero = np.zeros(2, np.float32)
    folded = check(graph(text, p=zero, q=zero.copy(), r=np.zeros(2, np.int64)), {"x": normal(2)})
    assert sorted(t.name for t in folded.graph.initializer) == ["p", "r"]


def test_bodies_are_cleaned_and_see_joined_constants() -> None:
    text = """(float[4] x, bool c) => (float[4] y) { y = If (c) <
        then_branch = a () => (float[4] t) { i = Identity(x) t = Add(i, w) },
        else_branch = b () => (float[4] e) { e = Add(x, v) }> }"""
    model = graph(text, w=np.ones(4, np.float32), v=np.ones(4, np.float32))
    for c in (True, False):
        folded = check(model, {"x": normal(4), "c": np.array(c)})
    assert len(folded.graph.initializer) == 1


def test_freeze_fixes_axes_and_what_follows_from_them() -> None:
    text = "(float[n,c] x) => (float[m,c] y) { y = Concat<axis=0>(x, x) }"
    model = graph(text)
    assert dynamic_axes(model) == ("n", "c")
    frozen = freeze(model, {"n": 3})
    values = (*frozen.graph.input, *frozen.graph.output)
    dims = [d.dim_value or d.dim_param for v in values for d in v.type.tensor_type.shape.dim]
    assert dims == [3, "c", 6, "c"]
    assert dynamic_axes(model) == ("n", "c")  # the argument is not changed
    with pytest.raises(UsageError, match="'batch'"):
        freeze(model, {"batch": 1})
    with pytest.raises(UsageError, match="size 0"):
        freeze(model, {"n": 0})
