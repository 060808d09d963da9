"""What bundles of every variant become for their targets: float16 that is typed and near, and plans of the TensorRT-RTX builder."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from matchrt.graph.emulate import emulate_half, emulate_tf32
from matchrt.graph.linter import lint
from matchrt.graph.prepare import PreparedGraph, prepare
from matchrt.graph.types import FLOAT, HALF, TypeTable, type_problems
from matchrt.model import PrecisionRule, Target
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt_eloftr.networks.fine import in_parts
from matchrt_eloftr.networks.network import OUTPUTS

WITH_OPT_SLOW = ("eloftr", "matchanything-eloftr", pytest.param("eloftr:opt", marks=pytest.mark.slow))
HALF_RTX = Target(backend="tensorrt_rtx", precision="fp16")
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def graph(bundles: Callable[[str], Path]) -> Callable[[str], onnx.ModelProto]:
    """`graph(variant)`: the bundle's graph, made by the command line."""
    return lru_cache(lambda variant: onnx.load(bundles(variant) / "network.onnx"))


@pytest.fixture(scope="module")
def rules() -> list[PrecisionRule]:
    plugins = get_plugins()
    return list(MatcherHooks(plugins, plugins.matcher("eloftr")).precision_rules(HALF_RTX))


@pytest.fixture(scope="module")
def half(graph: Any, rules: list[PrecisionRule]) -> Callable[[str], PreparedGraph]:
    """`half(variant)`: the graph prepared for TensorRT-RTX in float16."""
    return lru_cache(lambda variant: prepare(graph(variant), HALF_RTX, network="network", rules=rules))


def answers(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), feeds), strict=True))


def feeds_of(photographs: Any) -> Arrays:
    first, second = (image.numpy() for image in photographs.arrays)
    valid = np.array([first.shape[2:]], np.int32)
    return {"image0": first, "image1": second, "valid0": valid, "valid1": valid}


def cells_above(outputs: Arrays, threshold: float) -> dict[tuple[int, int], int]:
    slots = np.flatnonzero(outputs["scores"][0] > threshold)
    return {tuple(outputs["cells"][0, s].tolist()): int(s) for s in slots}


@pytest.mark.parametrize("variant", WITH_OPT_SLOW)
def test_half_graphs_are_typed(half: Any, variant: str) -> None:
    model = half(variant).model
    onnx.checker.check_model(model, full_check=True)
    assert type_problems(model) == []
    assert [f for f in lint(model, HALF_RTX) if f.severity == "error"] == []


def test_convolutions_are_half_and_what_decides_is_not(half: Any) -> None:
    """A rule that matches nothing (a renamed module) would keep nothing, silently."""
    prepared = half("eloftr")
    assert prepared.precision is not None
    assert {"coarse matches", "fine matches"} <= set(prepared.precision.reasons())
    graph = prepared.model.graph
    types = TypeTable(graph, 18)
    where = {
        (n.name.split("/")[0].split(".")[0], n.op_type): {types[m.output[0]] for m in graph.node if m is n}
        for n in graph.node
        if n.op_type in ("Conv", "MatMul", "Softmax", "Exp")
    }
    for (module, operator), found in where.items():
        decides = module in ("coarse_matching", "fine_matching")
        assert found == ({FLOAT} if decides else {HALF}), (module, operator)
    assert {m for m, _ in where} == {
        "backbone",
        "loftr_coarse",
        "fine_preprocess",
        "coarse_matching",
        "fine_matching",
    }


@pytest.mark.parametrize(("variant", "threshold"), [("eloftr", 0.2), ("eloftr:opt", 25.0)])
def test_half_matches_are_the_float32_matches(
    graph: Any, half: Any, photographs: Any, variant: str, threshold: float
) -> None:
    """In onnxruntime, whose CPU provider computes part of float16 in float32: it is the types and casts that this shows."""
    expected, found = (answers(m, feeds_of(photographs)) for m in (graph(variant), half(variant).model))
    left, right = cells_above(expected, threshold), cells_above(found, threshold)
    both = left.keys() & right.keys()
    assert len(left) >= 40
    assert len(both) >= 0.98 * max(len(left), len(right))
    moved = {c: expected["keypoints1"][0, left[c]] - found["keypoints1"][0, right[c]] for c in both}
    assert np.quantile(np.abs(np.stack(list(moved.values()))), 0.98) < 0.01
    assert all(np.array_equal(expected["keypoints0"][0, left[c]], found["keypoints0"][0, right[c]]) for c in both)
    similarity = max(float(expected["scores"].max()), 1.0)
    assert max(abs(expected["scores"][0, left[c]] - found["scores"][0, right[c]]) for c in both) < 0.01 * similarity
    assert max(np.abs(m).max() for m in moved.values()) > 0, "it really computed in half"


def test_tf32_loses_nothing_beside_half(half: Any, photographs: Any) -> None:
    """Half engines of TensorRT get TF32: every product left in float32 must have factors of 11 bits, or two such parts."""
    rounded = emulate_half(half("eloftr").model)
    expected, found = (answers(m, feeds_of(photographs)) for m in (rounded, emulate_tf32(rounded)))
    left, right = cells_above(expected, 0.2), cells_above(found, 0.2)
    assert len(left) >= 40
    assert left.keys() == right.keys()
    for name in ("keypoints0", "keypoints1", "scores"):
        far = max(float(np.abs(expected[name][0, left[c]] - found[name][0, right[c]]).max()) for c in left)
        assert far < 2e-4, (name, far)


def test_numbers_in_two_parts_are_whole_and_each_of_11_bits() -> None:
    x = torch.randn(1000, 3) * torch.logspace(-3, 3, 1000)[:, None]
    leading, rest = in_parts(x, 1).split(3, dim=1)
    assert torch.equal(leading + rest, x)
    mantissa, _ = torch.frexp(leading)
    assert torch.equal(mantissa * 2**11, (mantissa * 2**11).round())
    assert (rest.abs() <= x.abs() * 2**-11).all()


@pytest.mark.parametrize(("version", "held"), [("8.6.0", True), ("10.3.0", False), ("11.4.0", False)])
def test_tensorrt_8_adds_up_the_backbone_in_float32(graph: Any, version: str, held: bool) -> None:
    target = Target(backend="tensorrt", version=version, precision="fp16")
    hooks = MatcherHooks(get_plugins(), get_plugins().matcher("eloftr"))
    prepared = prepare(graph("eloftr"), target, network="network", rules=hooks.precision_rules(target))
    assert prepared.precision is not None
    kept = {k.node for k in prepared.precision.kept}
    layers = [n.name for n in prepared.model.graph.node if n.op_type == "Conv" and n.name.startswith("backbone")]
    assert len(layers) == 21
    assert {n in kept for n in layers} == {held}
    assert hooks.engine_options(target) == {"tf32": True}
    assert hooks.engine_options(Target(backend="tensorrt", version=version)) == {}


@pytest.mark.rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("variant", WITH_OPT_SLOW)
def test_tensorrt_rtx_builds_every_variant(
    graph: Any, half: Any, rtx_builder: ModuleType, variant: str, precision: str
) -> None:
    """Parses and builds on a CPU. It says nothing about numbers or speed."""
    target = Target(backend="tensorrt_rtx")
    model = half(variant).model if precision == "fp16" else prepare(graph(variant), target, network="network").model
    size, complaints = rtx_builder.build(model, {"pairs": (1, 1, 8)})
    assert size > 10_000_000, complaints
    assert complaints == []
