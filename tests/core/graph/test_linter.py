"""The linter against the real TensorRT-RTX parser and builder: what it refuses is refused, what it passes is built."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
from graph_kit import graph

from matchrt.errors import BackendError
from matchrt.graph.linter import lint, require_buildable, rules
from matchrt.graph.versions import in_range, version_tuple
from matchrt.model import Target

RTX = Target(backend="tensorrt_rtx")


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def image(node: str, output: str = "4,4") -> str:
    return f"(float[1,1,8,8] x) => (float[1,1,{output}] y) {{ y = {node} }}"


HALF_SCALE = {"s": np.array([1, 1, 0.5, 0.5], np.float32)}
WINDOW = "(float[1,1,8,8] x, float[2,4] r) => (float[2,1,1,1] y) { y = RoiAlign(x, r, b) }"
QKV = "(float[1,2,8,8] q, float[1,2,8,8] k, float[1,2,8,8] v) => (float[1,2,8,8] y)"
DEFORM = "(float[1,1,8,8] x, float[1,18,6,6] o) => (float[1,1,6,6] y) { y = DeformConv<kernel_shape=[3,3]>(x, w, o) }"

REFUSED = {
    "TopK": graph("(float[1,5000] x) => (float[1,3841] v) { v, i = TopK(x, k) }", k=ints(3841)),
    "NonZero": graph("(float[4,4] x) => (int64[2,m] y) { y = NonZero(x) }"),
    "Resize antialias": graph(image('Resize<mode="linear",antialias=1>(x, , s)'), **HALF_SCALE),
    "Resize policy": graph(image('Resize<keep_aspect_ratio_policy="not_larger",axes=[2,3]>(x, , , z)'), z=ints(4, 4)),
    "Resize crop": graph(
        image('Resize<coordinate_transformation_mode="tf_crop_and_resize">(x, r, , z)'),
        r=np.array([0, 0, 0, 0, 1, 1, 0.5, 0.5], np.float32),
        z=ints(1, 1, 4, 4),
    ),
    "ScatterND": graph(
        '(float[4] x, float[1] u) => (float[4] y) { y = ScatterND<reduction="add">(x, i, u) }', i=ints(1).reshape(1, 1)
    ),
    "ScatterElements": graph(
        '(float[4] x, float[1] u) => (float[4] y) { y = ScatterElements<reduction="add">(x, i, u) }', i=ints(1)
    ),
    "MaxPool dilated": graph(image("MaxPool<kernel_shape=[3,3],dilations=[2,2]>(x)")),
    "MaxPool indices": graph(
        "(float[1,1,8,8] x) => (float[1,1,6,6] y, int64[1,1,6,6] i) { y, i = MaxPool<kernel_shape=[3,3]>(x) }"
    ),
    "LayerNormalization mean": graph(
        "(float[2,8] x) => (float[2,8] y, float[2,1] m) { y, m = LayerNormalization(x, w) }", w=np.ones(8, np.float32)
    ),
    "EyeLike": graph("(float[n,n] x) => (float[n,n] y) { e = EyeLike(x) y = Add(x, e) }"),
    "Attention": graph(f"{QKV} {{ y = Attention(q, k, v) }}", 23),
    "Unique": graph("(float[8] x) => (float[m] y) { y = Unique(x) }"),
    "Det": graph("(float[3,3] x) => (float y) { y = Det(x) }"),
    "Compress": graph("(float[4] x, bool[4] c) => (float[m] y) { y = Compress(x, c) }"),
    "AffineGrid": graph("(float[1,2,3] x) => (float[1,4,4,2] y) { y = AffineGrid(x, s) }", 20, s=ints(1, 1, 4, 4)),
    "Col2Im": graph("(float[1,4,4] x) => (float[1,1,4,4] y) { y = Col2Im(x, s, b) }", s=ints(4, 4), b=ints(2, 2)),
    "BitwiseAnd": graph("(int32[4] x) => (int32[4] y) { y = BitwiseAnd(x, x) }"),
    "Bernoulli": graph("(float[4] x) => (float[4] y) { y = Bernoulli(x) }"),
    "NonMaxSuppression": graph(
        "(float[1,8,4] b, float[1,1,8] s) => (int64[m,3] y) { y = NonMaxSuppression(b, s, k) }", k=ints(3)
    ),
    "RoiAlign": graph(WINDOW, b=ints(0, 0)),
    "DeformConv": graph(DEFORM, 19, w=np.ones((1, 1, 3, 3), np.float32)),
    "unsigned": graph("(uint32[4] x) => (uint32[4] y) { y = Identity(x) }"),
}

ACCEPTED = {
    "TopK": graph("(float[1,5000] x) => (float[1,3840] v) { v, i = TopK(x, k) }", k=ints(3840)),
    "Resize": graph(image('Resize<mode="cubic">(x, , s)'), **HALF_SCALE),
    "ScatterND": graph("(float[4] x, float[1] u) => (float[4] y) { y = ScatterND(x, i, u) }", i=ints(1).reshape(1, 1)),
    "ScatterElements": graph("(float[4] x, float[1] u) => (float[4] y) { y = ScatterElements(x, i, u) }", i=ints(1)),
    "MaxPool": graph(image("MaxPool<kernel_shape=[3,3]>(x)", "6,6")),
    "LayerNormalization": graph(
        "(float[2,8] x) => (float[2,8] y) { y = LayerNormalization(x, w) }", w=np.ones(8, np.float32)
    ),
    "EyeLike": graph("(float[4,4] x) => (float[4,4] y) { e = EyeLike(x) y = Add(x, e) }"),
    "Einsum": graph(
        '(float[5,2,3] x, float[5,3,4] z) => (float[5,2,4] y) { y = Einsum<equation="...ij,...jk->...ik">(x, z) }'
    ),
    "GridSample": graph(
        '(float[1,1,4,4,4] x, float[1,2,2,2,3] g) => (float[1,1,2,2,2] y) { y = GridSample<mode="linear">(x, g) }', 20
    ),
    "attention written out": graph(
        f"{QKV} {{ t = Transpose<perm=[0,1,3,2]>(k) l = MatMul(q, t) w = Softmax(l) y = MatMul(w, v) }}"
    ),
}


def errors(model: onnx.ModelProto, target: Target = RTX) -> list[str]:
    return [f.operator or f.node for f in lint(model, target) if f.severity == "error"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_rtx_refuses_is_named(name: str) -> None:
    found = [f for f in lint(REFUSED[name], RTX) if f.severity == "error"]
    assert found
    assert all(f.limit and f.remedy for f in found)
    if name != "unsigned":
        assert found[0].operator == name.split()[0]
        assert found[0].node == next(n.name for n in REFUSED[name].graph.node if n.op_type == found[0].operator)
    with pytest.raises(BackendError, match="tensorrt_rtx cannot build"):
        require_buildable(REFUSED[name], RTX)


@pytest.mark.parametrize("name", ACCEPTED)
def test_near_misses_pass(name: str) -> None:
    assert errors(ACCEPTED[name]) == []


@pytest.mark.rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("name", [*(f"refused {n}" for n in REFUSED), *(f"accepted {n}" for n in ACCEPTED)])
def test_the_real_builder_agrees(name: str) -> None:
    from rtx_builder import build

    verdict, key = name.split(" ", 1)
    plan, complaints = build((REFUSED if verdict == "refused" else ACCEPTED)[key], {"n": (2, 2, 4)})
    assert (plan == 0) == (verdict == "refused"), complaints


@pytest.mark.rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_mixed_operand_types_are_refused_by_both() -> None:
    from rtx_builder import build

    model = graph("(float[4] x, float[4] z) => (float[4] y) { y = Add(x, z) }")
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    assert errors(model)
    assert build(model)[0] == 0


@pytest.mark.parametrize(
    ("name", "version", "refused"),
    [
        ("LayerNormalization", "8.5.3", True),
        ("LayerNormalization", "8.6.1", False),
        ("ScatterElements reduction", "8.6.1", True),
        ("ScatterElements reduction", "10.3", False),
        ("Einsum", "10.9", True),
        ("Einsum", "10.12.0.36", False),
        ("GridSample", "11.1", True),
        ("GridSample", "11.2.1", False),
        ("GridSample", "", False),
        ("DeformConv", "10.0", True),
        ("DeformConv", "10.1", False),
    ],
)
def test_limits_follow_the_version(name: str, version: str, refused: bool) -> None:
    model = {**ACCEPTED, "ScatterElements reduction": REFUSED["ScatterElements"], "DeformConv": REFUSED["DeformConv"]}[
        name
    ]
    operators = {f.operator for f in lint(model, Target(backend="tensorrt", version=version)) if f.severity == "error"}
    assert (name.split()[0] in operators) == refused


def test_silent_changes_are_warnings() -> None:
    double = graph("(double[4] x) => (double[4] y) { y = Neg(x) }")
    assert [f.severity for f in lint(double, RTX)] == ["warning"]
    old = Target(backend="tensorrt", version="8.6.1")
    ends = graph(
        "(float[8] x, int64[1] i) => (float[7] y, int64[1] j) { y = Slice(x, a, b) j = Neg(i) }",
        17,
        a=ints(1),
        b=ints(2**63 - 1),
    )
    assert {f.node for f in lint(ends, old)} == {"constant 'b'", "'i'", "'j'"}
    assert lint(ends, Target(backend="tensorrt", version="10.3")) == []


@pytest.mark.parametrize(
    ("keys", "version", "warned"), [(1601, "8.6.0", True), (1600, "8.6.0", False), (1601, "10.3", False)]
)
def test_attention_that_tensorrt_8_gets_wrong_is_told(keys: int, version: str, warned: bool) -> None:
    model = graph(
        f"(float[1,2,{keys},8] q, float[1,2,8,{keys}] k, float[1,2,{keys},8] v) => (float[1,2,{keys},8] y)"
        " { s = MatMul(q, k) w = Softmax<axis=-1>(s) y = MatMul(w, v) }",
        17,
    )
    found = [f for f in lint(model, Target(backend="tensorrt", version=version)) if "odd number" in f.limit]
    assert [(f.node, f.severity) for f in found] == (
        [("attention over 1601 keys (1 times)", "warning")] if warned else []
    )


def test_opsets_have_a_ceiling_by_version() -> None:
    model = graph("(float[4] x) => (float[4] y) { y = Neg(x) }", 18)
    assert errors(model, Target(backend="tensorrt", version="8.6.1")) == ["opset 18"]
    assert lint(model, Target(backend="tensorrt", version="10.3")) == []


def test_foreign_operators_have_no_importer() -> None:
    node = onnx.helper.make_node("Inverse", ["x"], ["y"], "inv", domain="com.microsoft")
    values = [onnx.helper.make_tensor_value_info(n, 1, [3, 3]) for n in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:]))
    model.opset_import.add(domain="com.microsoft", version=1)
    assert any("com.microsoft:Inverse 'inv'" in str(f) for f in lint(model, RTX))


def test_external_weights_are_noted(tmp_path: object) -> None:
    from pathlib import Path

    model = graph("(float[4] x) => (float[4] y) { y = Add(x, w) }", w=np.ones(4, np.float32))
    path = Path(str(tmp_path)) / "m.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, size_threshold=0, location="m.data")
    loaded = onnx.load(str(path), load_external_data=False)
    assert [f.severity for f in lint(loaded, RTX)] == ["note"]


def test_every_rule_of_the_table_is_well_formed() -> None:
    from matchrt.graph.linter import _MODEL_CHECKS, _NODE_CHECKS

    for rule in rules():
        assert rule.check in (_NODE_CHECKS if rule.operators else _MODEL_CHECKS)
        assert rule.severity in ("error", "warning", "note")
        assert all(in_range((10, 0), text) in (True, False) for text in rule.where.values())


def test_versions_compare_by_number() -> None:
    assert version_tuple("10.12.0.36") > version_tuple("10.9")
    assert in_range((8, 6, 1), ">=8.6,<9")
    assert not in_range((10, 0), "<10")
    assert in_range((), ">=11")
