"""prepare: the passes of each target in order, and what it records."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_kit import graph, normal, operators, run, same

from matchrt.errors import ExportError, UsageError
from matchrt.graph.precision import to_half
from matchrt.graph.prepare import prepare
from matchrt.graph.scopes import name_after_modules
from matchrt.model import GraphPass, PrecisionRule, Stage, Target

TEXT = """(float[n,2,5,8] q, float[n,2,5,8] k) => (float[n,2,5,8] y)
          { t = Transpose<perm=[0,1,3,2]>(k) l = MatMul(q, t) m = Mul(l, s) w = Softmax(m) a = MatMul(w, k) z = Slice(a, i, e, x)
            f = Add(a, z) y = LayerNormalization(f, g) }"""


def model() -> onnx.ModelProto:
    end, ax = np.array([2**63 - 1]), np.array([3])
    return graph(TEXT, s=np.float32(0.25), i=np.array([0]), e=end, x=ax, g=np.ones(8, np.float32))


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx", "onnxruntime"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_prepared_graphs_compute_the_same_and_stay_prepared(backend: str, precision: str) -> None:
    target = Target(backend=backend, precision=precision)
    original = model()
    before = original.SerializeToString(deterministic=True)
    prepared = prepare(original, target)
    assert original.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(prepared.model, full_check=True)
    assert same(prepare(prepared.model, target).model, prepared.model)
    feeds = {"q": normal(2, 2, 5, 8), "k": normal(2, 2, 5, 8, seed=1)}
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    np.testing.assert_allclose(run(prepared.model, feeds)["y"], run(original, feeds)["y"], atol=tolerance)
    assert (prepared.precision is not None) == (precision == "fp16")
    assert ("to-half" in prepared.applied) == (precision == "fp16")


def test_names_of_the_passes_are_recorded_in_order() -> None:
    applied = prepare(model(), Target(backend="tensorrt", version="10.3"), freeze={"n": 2}).applied
    assert applied == (
        "freeze",
        "fold-constants",
        "fuse-layer-norm",
        "fast-attention",
        "int64-to-int32",
        "fold-constants",
    )
    assert "int64-to-int32" not in prepare(model(), Target()).applied
    old = prepare(model(), Target(backend="tensorrt", version="8.5.3"))
    assert "decompose-layer-norm" in old.applied
    assert "LayerNormalization" not in operators(old.model)


def test_tensorrt_8_gets_constraints_instead_of_types() -> None:
    rule = PrecisionRule(pattern="^n6", reason="mine")
    prepared = prepare(model(), Target(backend="tensorrt", version="8.6.1", precision="fp16"), rules=[rule])
    assert {t.data_type for t in prepared.model.graph.initializer} & {onnx.TensorProto.FLOAT16} == set()
    assert prepared.precision is not None
    kept = {k.node: k.reason for k in prepared.precision.kept}
    assert kept["n6_Add"] == "mine"
    assert set(kept) <= {n.name for n in prepared.model.graph.node}
    typed = prepare(model(), Target(backend="tensorrt", version="10.3", precision="fp16"), rules=[rule])
    assert typed.precision is not None
    assert [k.node for k in typed.precision.kept] == list(kept)


def test_a_plugins_passes_run_in_their_stage_and_network() -> None:
    seen: list[str] = []

    def note(name: str) -> GraphPass:
        def run_pass(graph_model: onnx.ModelProto) -> onnx.ModelProto:
            seen.append(name)
            return graph_model

        stage = Stage.EXPORT if name == "export" else Stage.PREPARE
        return GraphPass(
            name=name, reason="", run=run_pass, stage=stage, networks=("other",) if name == "other" else None
        )

    applied = prepare(model(), Target(), network="mine", passes=[note("export"), note("other"), note("own")]).applied
    assert seen == ["own"]
    assert "own" in applied
    assert "export" not in applied
    assert "other" not in applied


def test_a_failing_pass_is_named() -> None:
    broken = GraphPass(name="broken", reason="", run=lambda m: None, stage=Stage.PREPARE)
    with pytest.raises(ExportError, match="'broken' failed on network 'net'"):
        prepare(model(), Target(), network="net", passes=[broken])
    with pytest.raises(UsageError, match="'int8'"):
        prepare(model(), Target(precision="int8"))


def test_nodes_are_named_after_their_modules() -> None:
    graph_model = graph("(float[4] x) => (float[4] y) { a = Neg(x) b = Abs(a) c = Exp(b) y = Neg(c) }")
    names = ["node_neg", "node_abs", "/network/block/block.0/Exp", "/network/Neg"]
    scopes = ["['', 'network', 'network.layers.0', 'neg']", "['', 'network', 'abs']", "", ""]
    for node, name, scope in zip(graph_model.graph.node, names, scopes, strict=True):
        node.name = name
        if scope:
            node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scope)
    expected = ["layers.0/node_neg", "/node_abs", "block.0/Exp", "/Neg"]
    assert [n.name for n in name_after_modules(graph_model).graph.node] == expected
    assert [n.name for n in name_after_modules(graph_model).graph.node] == expected
    assert to_half(graph_model, [PrecisionRule(pattern=r"^block\.0/", reason="r")])[1].kept[0].reason == "r"
