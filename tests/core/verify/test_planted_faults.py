"""Faults planted in LightGlue's graph are caught, and the place is named. The shipped weights are real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from matchrt.bundle import read_bundle
from matchrt.graph.emulate import emulate_tf32
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.progress import Silent
from matchrt.verify import VerifyResult
from matchrt.verify.emulated import emulated_bundle
from matchrt.verify.subjects import How

Verified = Callable[..., VerifyResult]
NORM = "transformers.2.self_attn.ffn.1"


def _node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def wrong_epsilon(model: onnx.ModelProto) -> None:
    """1e-2 in place of 1e-5 in one LayerNorm."""
    norm = next(n for n in model.graph.node if n.op_type == "LayerNormalization" and n.name.startswith(NORM + "/"))
    next(a for a in norm.attribute if a.name == "epsilon").f = 1e-2


def per_axis_normalisation(model: onnx.ModelProto) -> None:
    """x by half the width and y by half the height, in place of both by half the longer side."""
    for divide, subtract in (("/node_div_2", "/node_sub"), ("/node_div_5", "/node_sub_1")):
        half_size = _node(model, subtract).input[1]
        _node(model, divide).input[1] = half_size


def test_a_clean_bundle_passes_and_no_point_jumps(mini_bundle: Path, verified: Verified) -> None:
    result = verified(mini_bundle, locate=True)
    assert result.passed
    assert result.failures == ()
    assert result.location is not None
    assert result.location.point is None
    names = {p.name for p in result.location.points}
    assert len(names) > 20
    assert max(p.error for p in result.location.points) < 1e-5


def test_a_wrong_layer_norm_epsilon_is_named_to_the_node(mini_bundle: Path, plant, verified: Verified) -> None:  # type: ignore[no-untyped-def]
    result = verified(plant(mini_bundle, "matcher", wrong_epsilon))
    assert not result.passed
    found = result.location
    assert found is not None
    assert (found.network, found.place) == ("matcher", NORM)
    assert found.culprit is not None
    assert found.culprit.startswith(NORM + "/")
    assert found.point is not None
    assert found.point.error > 100 * found.point.inherited


def test_per_axis_normalisation_is_named_before_the_positional_encoding(
    mini_bundle: Path,
    plant,  # type: ignore[no-untyped-def]
    verified: Verified,
) -> None:
    result = verified(plant(mini_bundle, "matcher", per_axis_normalisation))
    found = result.location
    assert not result.passed
    assert found is not None
    assert found.point is not None
    assert (found.network, found.place, found.point.name) == ("matcher", "", "posenc.Wr (input)")
    assert any("node_div_" in n for n in found.nodes)
    assert not any(n.startswith(("posenc", "transformers")) for n in found.nodes)
    assert "in the network's own forward" in found.sentence


def test_against_another_bundle_the_first_node_is_named(mini_bundle: Path, plant, verified: Verified) -> None:  # type: ignore[no-untyped-def]
    """The reference is a clean bundle: points are the tensors that both graphs have, so that the node itself is told."""
    planted = plant(mini_bundle, "matcher", per_axis_normalisation)
    result = verified(planted, against=mini_bundle, reference=How())
    assert not result.passed
    assert result.location is not None
    assert result.location.culprit is not None
    assert result.location.culprit.startswith("/node_div_")


def test_tf32_products_are_named_at_the_first_product(mini_bundle: Path, plant, verified: Verified) -> None:  # type: ignore[no-untyped-def]
    def change(model: onnx.ModelProto) -> None:
        model.CopyFrom(emulate_tf32(model, ("MatMul",)))

    planted = plant(mini_bundle, "matcher", change)
    result = verified(planted, against=mini_bundle, reference=How(), locate=True)
    graph = onnx.load(str(read_bundle(mini_bundle).graph("matcher")))
    first = next(n.name for n in graph.graph.node if n.op_type == "MatMul")
    assert result.location is not None
    assert result.location.point is not None
    assert result.location.point.name == first


def test_emulated_half_passes_its_own_bounds_and_not_those_of_float32(mini_bundle: Path, verified: Verified) -> None:
    engine = How(backend="tensorrt_rtx", precision="fp16", threads=1)
    result = verified(mini_bundle, engine=engine, emulate=True)
    assert result.passed
    assert result.bounds.mean_px == 0.1
    assert max(d.relative for d in result.pairs[0].equal) > 1e-4
    assert any(not d.passed for d in result.pairs[0].equal)


def test_emulated_half_takes_tf32_where_the_engine_would(
    mini_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = MatcherHooks(get_plugins(), get_plugins().matcher("superpoint-lightglue"))
    how = How(backend="tensorrt_rtx", precision="fp16", threads=1)
    cut = []
    for number, options in enumerate(({}, {"tf32": True})):
        monkeypatch.setattr(hooks, "engine_options", lambda target, options=options: options)
        folder = tmp_path / str(number)
        folder.mkdir()
        made = emulated_bundle(read_bundle(mini_bundle), hooks, how, folder, Silent())
        names = {t.name for t in onnx.load(str(made.graph("matcher"))).graph.initializer}
        cut.append("tf32_split" in names)
    assert cut == [False, True]
