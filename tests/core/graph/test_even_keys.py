"""Attention over an odd number of keys, filled up for TensorRT 8: the same function, an even number, and silence of the linter."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_kit import graph, normal, operators, run

from matchrt.graph.attention import find_attention
from matchrt.graph.even_keys import FILLER, even_keys
from matchrt.graph.linter import lint
from matchrt.graph.prepare import prepare
from matchrt.graph.types import shapes
from matchrt.model import PrecisionRule, Target

HEAD = "(float[2,3,5,8] q, float[2,3,7,8] k, float[2,3,7,8] v, float[{b}] b) => (float[2,3,5,8] y)"
BODY = "t = Transpose<perm=[0,1,3,2]>(k) p = Mul(q, s) l = MatMul(p, t) "
MASKED = BODY + "a = Add(l, b) w = Softmax<axis=-1>(a) y = MatMul(w, v)"
S = {"s": np.float32(8**-0.5)}
FORMS = {
    "no mask": ("2", BODY + "w = Softmax<axis=-1>(l) y = MatMul(w, v)"),
    "a row": ("2,1,1,7", MASKED),
    "a mask for each head and query": ("3,5,7", MASKED),
    "mask first": ("7", MASKED.replace("Add(l, b)", "Add(b, l)")),
    "scale after": ("2,1,1,7", MASKED.replace("MatMul(p, t)", "MatMul(q, t) m = Mul(l, s)").replace("Add(l", "Add(m")),
}
TRT86 = Target(backend="tensorrt", version="8.6.0", precision="fp32")


def made(name: str) -> onnx.ModelProto:
    size, body = FORMS[name]
    return graph(f"{HEAD.format(b=size)} {{ {body} }}", **S)


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Large keys, so that a key too many with a weight would show; a mask that leaves some out."""
    found = {
        i.name: 3 * normal(*(d.dim_value for d in i.type.tensor_type.shape.dim), seed=n)
        for n, i in enumerate(model.graph.input)
    }
    found["b"] = np.where(found["b"] > 3, np.float32(FILLER), found["b"])
    return found


@pytest.mark.parametrize("name", FORMS)
def test_keys_are_filled_up_and_the_function_stays(name: str) -> None:
    model = made(name)
    before = model.SerializeToString(deterministic=True)
    filled = even_keys(model)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(filled, full_check=True)
    (attention,) = find_attention(filled)
    assert shapes(filled)[attention.softmax.output[0]][-1] == 8
    np.testing.assert_allclose(run(filled, feeds(model))["y"], run(model, feeds(model))["y"], rtol=1e-6, atol=1e-7)
    assert even_keys(filled) is filled


@pytest.mark.parametrize(
    "model",
    [
        graph(f"{HEAD.format(b='2').replace('7,8', '6,8')} {{ {FORMS['no mask'][1]} }}", **S),
        graph(f"{HEAD.format(b='2').replace('7,8', 'N,8')} {{ {FORMS['no mask'][1]} }}", **S),
        graph(f"{HEAD.format(b='2,1,1,1')} {{ {MASKED} }}", **S),
    ],
    ids=["even", "not fixed", "one column for all keys"],
)
def test_what_cannot_or_need_not_be_filled_is_left(model: onnx.ModelProto) -> None:
    assert even_keys(model) is model


def test_a_mask_of_one_column_is_warned_of() -> None:
    model = graph(f"{HEAD.format(b='2,1,1,1')} {{ {MASKED} }}", **S)
    prepared = prepare(model, TRT86)
    (finding,) = [f for f in lint(prepared.model, TRT86) if "keys" in f.limit]
    assert "attention over 7 keys" in str(finding)


@pytest.mark.parametrize("version", ["8.6.0", "10.13.0"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_only_tensorrt_8_needs_it_and_its_linter_is_content(version: str, precision: str) -> None:
    target = Target(backend="tensorrt", version=version, precision=precision)
    prepared = prepare(made("a row"), target)
    assert ("even-keys" in prepared.applied) == version.startswith("8")
    assert ("Pad" in operators(prepared.model)) == version.startswith("8")
    assert not [f for f in lint(prepared.model, target) if "keys" in f.limit]


def test_rules_by_module_path_hold_for_what_is_added() -> None:
    """The filler's Add must not compute in half beside products that are kept in float32."""
    model = made("no mask")
    for node in model.graph.node:
        node.name = f"block.attention/{node.name}"
    rule = PrecisionRule(pattern=r"^block\.attention/", reason="kept")
    prepared = prepare(model, Target(backend="tensorrt", version="8.6.0", precision="fp16"), rules=[rule])
    adds = [n.name for n in prepared.model.graph.node if n.op_type == "Add"]
    assert len(adds) == 1
    assert prepared.precision is not None
    assert adds[0] in {k.node for k in prepared.precision.kept}
