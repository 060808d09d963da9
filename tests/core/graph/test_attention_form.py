"""Attention in the fused form: found in hand-written and exported graphs, and computing the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_kit import graph, normal, operators, run, same

from matchrt.graph.attention import fast_attention, find_attention
from matchrt.graph.layer_norm import decompose_layer_norm, fuse_layer_norm
from matchrt.graph.types import shapes

FOUR = "(float[2,3,5,8] q, float[2,3,7,8] k, float[2,3,7,8] v, float[2,1,1,7] b) => (float[2,3,5,8] y)"
THREE = "(float[6,5,8] q, float[6,7,8] k, float[6,7,8] v, float[6,1,7] b) => (float[6,5,8] y)"
KT4, KT3 = "t = Transpose<perm=[0,1,3,2]>(k)", "t = Transpose<perm=[0,2,1]>(k)"
S = {"s": np.float32(8**-0.5), "d": np.float32(8**0.5), "r": np.float32(8**-0.25)}

FORMS = {
    "scale after": f"{FOUR} {{ {KT4} l = MatMul(q, t) m = Mul(l, s) w = Softmax<axis=-1>(m) y = MatMul(w, v) }}",
    "division after": f"{FOUR} {{ {KT4} l = MatMul(q, t) m = Div(l, d) w = Softmax<axis=3>(m) y = MatMul(w, v) }}",
    "scale after, mask": f"{FOUR} {{ {KT4} l = MatMul(q, t) m = Mul(s, l) a = Add(m, b) w = Softmax(a) y = MatMul(w, v) }}",
    "mask first": f"{FOUR} {{ {KT4} l = MatMul(q, t) m = Mul(l, s) a = Add(b, m) w = Softmax(a) y = MatMul(w, v) }}",
    "root on both": f"{FOUR} {{ {KT4} p = Mul(q, r) u = Mul(t, r) l = MatMul(p, u) a = Add(l, b) w = Softmax(a) y = MatMul(w, v) }}",
    "root before transpose": f"""{FOUR} {{ p = Mul(q, r) u = Mul(k, r) t = Transpose<perm=[0,1,3,2]>(u) l = MatMul(p, t)
        w = Softmax(l) y = MatMul(w, v) }}""",
    "three dimensions": f"{THREE} {{ {KT3} p = Mul(q, s) l = MatMul(p, t) a = Add(l, b) w = Softmax(a) y = MatMul(w, v) }}",
    "three, scale after": f"{THREE} {{ {KT3} l = MatMul(q, t) m = Mul(l, s) w = Softmax<axis=2>(m) y = MatMul(w, v) }}",
}


def feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {
        i.name: normal(*(d.dim_value for d in i.type.tensor_type.shape.dim), seed=n)
        for n, i in enumerate(model.graph.input)
    }


@pytest.mark.parametrize("name", FORMS)
def test_every_form_becomes_the_fast_one(name: str) -> None:
    model = graph(FORMS[name], **S)
    (before,) = find_attention(model)
    fast = fast_attention(model)
    onnx.checker.check_model(fast, full_check=True)
    (after,) = find_attention(fast)
    assert after.fast
    assert after.fast != before.fast or name.startswith("root")
    assert len(shapes(fast)[after.softmax.output[0]]) == 4
    # Between product and softmax stands nothing but the mask, and k carries no factor.
    assert operators(fast).count("Mul") == 1
    assert "Div" not in operators(fast)
    np.testing.assert_allclose(run(fast, feeds(model))["y"], run(model, feeds(model))["y"], rtol=2e-5, atol=2e-6)
    assert same(fast_attention(fast), fast)


def test_the_fast_form_is_left_alone() -> None:
    model = graph(
        f"{FOUR} {{ {KT4} p = Mul(q, s) l = MatMul(p, t) a = Add(l, b) w = Softmax(a) y = MatMul(w, v) }}", **S
    )
    assert find_attention(model)[0].fast
    assert fast_attention(model) is model


def test_what_others_read_is_not_touched() -> None:
    body = f"{{ {KT4} l = MatMul(q, t) m = Mul(l, s) w = Softmax(m)"
    returned = graph(f"{FOUR.replace('y)', 'y, float[2,3,5,7] w)')} {body} y = MatMul(w, v) }}", **S)
    read = graph(f"{FOUR} {body} z = MatMul(w, v) e = ReduceMax(l) y = Add(z, e) }}", **S)
    for model in (returned, read):
        assert find_attention(model) == []
        assert fast_attention(model) is model


def test_softmax_over_queries_is_no_attention() -> None:
    model = graph(f"{FOUR} {{ {KT4} l = MatMul(q, t) m = Mul(l, s) w = Softmax<axis=2>(m) y = MatMul(w, v) }}", **S)
    assert find_attention(model) == []


def test_an_expectation_over_constants_is_no_attention() -> None:
    """softmax(q kᵀ) times fixed offsets: a sub-pixel position, say."""
    text = f"{THREE.replace('[6,5,8] y', '[6,5,2] y')} {{ {KT3} l = MatMul(q, t) w = Softmax(l) y = MatMul(w, o) }}"
    model = graph(text, o=normal(7, 2))
    assert find_attention(model) == []
    assert fast_attention(model) is model


def test_lifting_takes_recorded_shapes_along() -> None:
    """Exporters record the three dimensions of what stands between the products."""
    model = onnx.shape_inference.infer_shapes(graph(FORMS["three, scale after"], **S))
    assert any(v.name == "w" for v in model.graph.value_info)
    fast = fast_attention(model)
    onnx.checker.check_model(fast, full_check=True)
    assert len(shapes(fast)["w"]) == 4


def test_exports_of_torch_are_recognised(tmp_path: object) -> None:
    """SDPA with and without mask, MultiheadAttention and a hand-written block, by torch's own exporter."""
    import io

    import torch
    import torch.nn.functional as F

    class Zoo(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.multi = torch.nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            plain = F.scaled_dot_product_attention(q, k, k)
            masked = F.scaled_dot_product_attention(plain, k, k, attn_mask=mask)
            hand = ((masked @ k.transpose(2, 3)) / 8**0.5 + mask).softmax(-1) @ k
            tokens = hand.transpose(1, 2).flatten(2)
            return self.multi(tokens, tokens, tokens, need_weights=True)[0]  # type: ignore[no-any-return]

    torch.manual_seed(0)
    inputs = tuple(torch.randn(s) for s in ((2, 2, 5, 8), (2, 2, 7, 8), (2, 1, 5, 7)))
    stream = io.BytesIO()
    torch.onnx.export(Zoo().eval(), inputs, stream, dynamo=False, opset_version=17, input_names=["q", "k", "m"])  # type: ignore[arg-type]
    model = onnx.load_from_string(stream.getvalue())
    from matchrt.graph.fold import fold

    folded = fold(model)
    fast = fast_attention(folded)
    attentions = find_attention(fast)
    assert len(attentions) == operators(fast).count("Softmax") - _averaged(folded)
    assert len(attentions) >= 3
    assert all(a.fast for a in attentions)
    values = {n: t.numpy() for n, t in zip(("q", "k", "m"), inputs, strict=True)}
    name = model.graph.output[0].name
    np.testing.assert_allclose(run(fast, values)[name], run(model, values)[name], rtol=1e-4, atol=1e-5)


def _averaged(model: onnx.ModelProto) -> int:
    """Attentions whose weights somebody else reads as well (MultiheadAttention averages them unless told not to)."""
    return operators(model).count("Softmax") - len(find_attention(model))


NORM = "(float[2,5,16] x) => (float[2,5,16] y)"
HEAD = f"{NORM} {{ m = ReduceMean(x, a) c = Sub(x, m)"
NORMS = {
    "mul": f"""{HEAD} s = Mul(c, c) v = ReduceMean(s, a) e = Add(v, eps) r = Sqrt(e) d = Div(c, r)
        g = Mul(d, w) y = Add(g, b) }}""",
    "pow": f"""{HEAD} s = Pow(c, two) v = ReduceMean(s, a) e = Add(eps, v) r = Sqrt(e) d = Div(c, r)
        g = Mul(w, d) y = Add(b, g) }}""",
    "reciprocal": f"""{HEAD} s = Mul(c, c) v = ReduceMean(s, a) e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r)
        y = Mul(c, i) }}""",
}


@pytest.mark.parametrize("name", NORMS)
def test_layer_norms_become_one_operator_and_back(name: str) -> None:
    constants = {
        "a": np.array([-1]),
        "eps": np.float32(1e-3),
        "two": np.float32(2),
        "w": normal(16, seed=1),
        "b": normal(16, seed=2),
    }
    model = graph(NORMS[name], **constants)
    fused = fuse_layer_norm(model)
    onnx.checker.check_model(fused, full_check=True)
    assert operators(fused) == ["LayerNormalization"]
    assert fuse_layer_norm(fused) is fused
    x = {"x": normal(2, 5, 16) * 3 + 1}
    np.testing.assert_allclose(run(fused, x)["y"], run(model, x)["y"], rtol=1e-4, atol=1e-5)
    plain = decompose_layer_norm(fused)
    assert "LayerNormalization" not in operators(plain)
    np.testing.assert_allclose(run(plain, x)["y"], run(model, x)["y"], rtol=1e-4, atol=1e-5)


def test_other_normalisations_are_no_layer_norm() -> None:
    constants = {"a": np.array([1]), "eps": np.float32(1e-3), "w": normal(16), "b": normal(16)}
    over_tokens = graph(NORMS["mul"], **constants)
    assert fuse_layer_norm(over_tokens) is over_tokens
    uncentred = NORMS["mul"].replace("d = Div(c, r)", "d = Div(x, r)")
    model = graph(uncentred, **{**constants, "a": np.array([-1])})
    assert fuse_layer_norm(model) is model
