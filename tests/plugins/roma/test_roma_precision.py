"""The fp16 graphs of every part at tiny size: typed, strict float32 where it decides, near float32, and built by TensorRT-RTX."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from roma_files import HIGH, SIZE
from roma_oracle import images, make_twins

from matchrt.graph.linter import lint
from matchrt.graph.passes import BUILT_IN, run_passes
from matchrt.graph.precision import to_half
from matchrt.graph.prepare import PreparedGraph, prepare
from matchrt.graph.types import FLOAT, HALF, TypeTable, type_problems
from matchrt.model import PrecisionRule, Target
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt_roma.networks import Roma

RTX = Target(backend="tensorrt_rtx", precision="fp16")
NAMES = (
    "vit",
    "pyramid",
    "pyramid8",
    "gp",
    "gp_readout",
    "coarse",
    "coarse_final",
    "refine",
    "refine_final",
    "upsample",
)
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def hooks() -> MatcherHooks:
    return MatcherHooks(get_plugins(), get_plugins().matcher("roma"))


@pytest.fixture(scope="module")
def network() -> Roma:
    return make_twins(37, SIZE, HIGH).ours


@pytest.fixture(scope="module")
def graphs(part_graph: Callable[[str], onnx.ModelProto], hooks: MatcherHooks) -> dict[str, onnx.ModelProto]:
    torch.set_num_threads(1)
    parts = {part.name for variant in hooks.matcher.variants for part in hooks.matcher.networks_of(variant)}
    assert parts <= set(NAMES)
    return {name: run_passes(copy.deepcopy(part_graph(name)), BUILT_IN, name) for name in NAMES}


@pytest.fixture(scope="module")
def rules(hooks: MatcherHooks) -> list[PrecisionRule]:
    return list(hooks.precision_rules(RTX))


@pytest.fixture(scope="module")
def prepared(graphs: dict[str, onnx.ModelProto], rules: list[PrecisionRule]) -> dict[str, PreparedGraph]:
    return {name: prepare(model, RTX, network=name, rules=rules) for name, model in graphs.items()}


@pytest.fixture(scope="module")
def tensors(network: Roma) -> Arrays:
    """What the float32 network hands from part to part."""
    with torch.no_grad():
        known = network.run({"images": images(2, SIZE)[None], "images_high": images(2, HIGH)[None]})
    return {name: tensor.numpy() for name, tensor in known.items()}


def run(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = [i.name for i in session.get_inputs()]
    outputs = [o.name for o in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, {n: feeds[n] for n in wanted}), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_typed_and_stable(name: str, prepared: dict[str, PreparedGraph], rules: list[PrecisionRule]) -> None:
    model = prepared[name].model
    onnx.checker.check_model(model, full_check=True)
    assert type_problems(model) == []
    assert [f for f in lint(model, RTX) if f.severity == "error"] == []
    assert list(to_half(model, rules, network=name)[0].graph.node) == list(model.graph.node)
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {FLOAT}


@pytest.mark.parametrize("name", ["gp", "gp_readout"])
def test_the_gaussian_process_is_all_float32(name: str, prepared: dict[str, PreparedGraph]) -> None:
    graph = prepared[name].model.graph
    types = TypeTable(graph, 18)
    assert {types[o] for n in graph.node for o in n.output} & {HALF} == set()
    assert not any(i.data_type == HALF for i in graph.initializer)


def test_the_networks_compute_in_half(prepared: dict[str, PreparedGraph]) -> None:
    for name in ("vit", "pyramid", "pyramid8", "coarse", "coarse_final", "refine", "refine_final", "upsample"):
        graph = prepared[name].model.graph
        types = TypeTable(graph, 18)
        wide = {
            n.name.split("/")[0] for n in graph.node if n.op_type in ("Conv", "MatMul") and types[n.output[0]] == FLOAT
        }
        assert all(w.endswith((".out_conv", "to_out")) for w in wide), (name, wide)
        assert any(n.op_type in ("Conv", "MatMul") and types[n.output[0]] == HALF for n in graph.node)


def test_coordinates_and_certainty_are_float32(prepared: dict[str, PreparedGraph]) -> None:
    """Every number between the refiners' outputs and the results, and every place that is sampled."""
    for name in ("coarse", "coarse_final", "refine", "refine_final", "upsample"):
        graph = prepared[name].model.graph
        types = TypeTable(graph, 18)
        makers = {o: n for n in graph.node for o in n.output}
        starts = [o.name for o in graph.output] + [n.input[1] for n in graph.node if n.op_type == "GridSample"]
        seen: set[str] = set()
        while starts:
            tensor = starts.pop()
            node = makers.get(tensor)
            if node is None or tensor in seen:
                continue
            seen.add(tensor)
            assert types[tensor] != HALF, (name, node.name)
            if not node.name.split("/")[0].endswith((".out_conv", "to_out")):
                starts += node.input


LIMITS = {"f16": 4e-3, "f8": 6e-3, "f4": 3e-3, "f2": 3e-3, "f1": 2e-3, "mean": 1e-6, "flow8": 6e-4, "flow": 8e-5, "warp": 5e-4,
          "certainty8": 8e-3, "certainty16": 8e-3, "certainty_low": 4e-3, "certainty": 6e-4}  # fmt: skip
"""Mean absolute differences on equal inputs; coordinates in units of half an image, logits and features in their own (units)."""


@pytest.mark.parametrize("name", NAMES)
def test_near_float32_on_equal_inputs(
    name: str, graphs: dict[str, onnx.ModelProto], prepared: dict[str, PreparedGraph], tensors: Arrays
) -> None:
    expected, found = run(graphs[name], tensors), run(prepared[name].model, tensors)
    for tensor, values in expected.items():
        gap = np.abs(found[tensor] - values)
        assert float(gap.mean()) <= LIMITS[tensor], (tensor, float(gap.mean()), float(gap.max()))
    assert name.startswith("gp") or any(np.abs(found[t] - v).max() > 0 for t, v in expected.items())  # it did round


def test_without_the_rules_the_gaussian_process_is_lost(graphs: dict[str, onnx.ModelProto], tensors: Arrays) -> None:
    half = prepare(graphs["gp"], RTX, network="gp", rules=[]).model
    assert float(np.abs(run(half, tensors)["mean"] - tensors["mean"]).mean()) > 1e-3


@pytest.mark.rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_tensorrt_rtx_builds_the_half_graph(
    name: str, prepared: dict[str, PreparedGraph], rtx_builder: ModuleType
) -> None:
    size, complaints = rtx_builder.build(prepared[name].model)
    assert size > 10_000, complaints
