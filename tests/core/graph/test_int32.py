"""INT64 to INT32: only where no value can leave the range."""

from __future__ import annotations

import numpy as np
import onnx
from graph_kit import graph, normal, operators, run, same

from matchrt.graph.int32 import to_int32
from matchrt.graph.types import INT32, INT64, TypeTable, type_problems


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def check(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> TypeTable:
    narrow = to_int32(model)
    onnx.checker.check_model(narrow, full_check=True)
    assert type_problems(narrow) == []
    assert same(to_int32(narrow), narrow)
    before, after = run(model, feeds), run(narrow, feeds)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
        assert after[name].dtype == value.dtype
    return TypeTable(narrow.graph, 18)


def test_row_and_column_of_an_index_are_computed_in_int32() -> None:
    text = """(float[1,64] s) => (float[1,5] r, float[1,5] c)
              { v, i = TopK(s, k) row = Div(i, w) m = Mul(row, w) col = Sub(i, m) r = Cast<to=1>(row) c = Cast<to=1>(col) }"""
    types = check(graph(text, k=ints(5), w=np.array(8)), {"s": normal(1, 64)})
    assert [types[n] for n in ("row", "m", "col")] == [INT32] * 3
    assert types["i"] == INT64  # TopK makes INT64: one cast follows it


def test_products_that_may_exceed_the_range_stay() -> None:
    text = """(float[1,64] s) => (float[1,5] r)
              { v, i = TopK(s, k) m = Mul(i, big) r = Cast<to=1>(m) }"""
    types = check(graph(text, k=ints(5), big=np.array(2**26)), {"s": normal(1, 64)})  # 63 · 2^26 > 2^31
    assert types["m"] == INT64
    assert check(graph(text, k=ints(5), big=np.array(2**25)), {"s": normal(1, 64)})["m"] == INT32


def test_inputs_and_outputs_keep_their_type() -> None:
    text = "(int64[3] i, float[8] x) => (int64[3] j, float[3] y) { j = Add(i, one) y = Gather(x, i) }"
    types = check(graph(text, one=np.array(1)), {"i": ints(0, 2, 5), "x": normal(8)})
    assert [types[n] for n in ("i", "j")] == [INT64, INT64]


def test_shape_arithmetic_for_reshape_stays_whole() -> None:
    text = """(float[n,8] x) => (float[m,4] y)
              { s = Shape(x) b = Slice(s, zero, one) d = Mul(b, two) t = Concat<axis=0>(d, four) y = Reshape(x, t) }"""
    model = graph(text, zero=ints(0), one=ints(1), two=ints(2), four=ints(4))
    types = check(model, {"x": normal(3, 8)})
    assert [types[n] for n in ("b", "d", "t")] == [INT64] * 3
    assert "Cast" not in operators(to_int32(model))


def test_slice_ends_fit_the_axis() -> None:
    text = (
        "(float[n,8] x) => (float[m,7] y, float[k,8] z) { y = Slice(x, one, end, axis1) z = Slice(x, one, end, axis0) }"
    )
    model = graph(text, one=ints(1), end=ints(2**63 - 1), axis1=ints(1), axis0=ints(0))
    check(model, {"x": normal(3, 8)})
    values = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in to_int32(model).graph.initializer}
    ends = {values[n.input[2]][0] for n in to_int32(model).graph.node if n.op_type == "Slice"}
    assert ends == {8, 2**31 - 1}


def test_a_reversed_slice_still_reaches_the_first_element() -> None:
    text = "(float[8] x) => (float[8] y) { y = Slice(x, start, end, zero, step) }"
    model = graph(text, start=ints(2**63 - 1), end=ints(-(2**63) + 1), zero=ints(0), step=ints(-1))
    check(model, {"x": normal(8)})


def test_comparisons_and_masks_follow() -> None:
    text = """(float[2,9] x, int32[2] n) => (bool[2,9] y)
              { s = Shape<start=1, end=2>(x) l = Squeeze(s) r = Range(zero, l, one)
                c = Cast<to=7>(n) u = Unsqueeze(c, axis) y = Less(r, u) }"""
    types = check(
        graph(text, zero=np.array(0), one=np.array(1), axis=ints(1)),
        {"x": normal(2, 9), "n": np.array([3, 9], np.int32)},
    )
    assert [types[n] for n in ("r", "r_int32", "u")] == [INT64, INT32, INT32]
