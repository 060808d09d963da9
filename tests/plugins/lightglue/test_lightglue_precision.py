"""The fp16 graphs of SuperPoint + LightGlue: typed, accepted by TensorRT-RTX, and close to float32 where it decides.

onnx's reference operators round every result to its type; onnxruntime's CPU provider computes much of float16 in float32.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import nn

from matchrt.export.onnx_export import export_network
from matchrt.graph.linter import lint
from matchrt.graph.passes import BUILT_IN, run_passes
from matchrt.graph.precision import to_half
from matchrt.graph.prepare import PreparedGraph, prepare
from matchrt.graph.types import FLOAT, HALF, TypeTable, type_problems
from matchrt.model import PrecisionRule, Target
from matchrt.patches import apply_patches
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.settings import resolve

K = 64
RTX = Target(backend="tensorrt_rtx", precision="fp16")
Arrays = dict[str, np.ndarray]


def calibrate(matcher: nn.Module) -> None:
    """Weights with which alike descriptors match with high scores and positions matter."""
    generator = torch.Generator().manual_seed(5)
    for name, tensor in matcher.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("final_proj.weight"):
            tensor.copy_(12 * torch.eye(len(tensor)) + 0.02 * noise)
        elif name.endswith("matchability.bias"):
            tensor.fill_(3.0)
        elif name == "posenc.Wr.weight":
            tensor.copy_(3 * noise)
        elif name.endswith("ffn.3.weight"):
            tensor.mul_(0.2)


@pytest.fixture(scope="module")
def graphs() -> dict[str, onnx.ModelProto]:
    torch.set_num_threads(1)
    plugins = get_plugins()
    spec = plugins.matcher("superpoint-lightglue")
    hooks, variant = MatcherHooks(plugins, spec), spec.variant("mini")
    settings = resolve(spec.settings, ("variant", variant.settings), ("flag", {"keypoints": K}), environment={})
    torch.manual_seed(1)
    network = hooks.build_network(variant, settings).eval().requires_grad_(False)
    for name, tensor in network.get_submodule("extractor").named_parameters():
        if name.startswith("conv") and tensor.ndim == 4:
            tensor.mul_(2)  # else features fade and all scores tie
    network.get_submodule("extractor.convPb").weight.mul_(8)
    calibrate(network.get_submodule("matcher"))
    target = Target()
    found = {}
    with apply_patches(network, hooks.onnx_patches(network, target)):
        for part in spec.networks_of(variant):
            example = hooks.example_inputs(variant, settings)[part.name]
            model = export_network(network.get_submodule(part.module_path), part, example, target)
            found[part.name] = run_passes(model, BUILT_IN, part.name)
    return found


@pytest.fixture(scope="module")
def rules() -> list[PrecisionRule]:
    plugins = get_plugins()
    return list(MatcherHooks(plugins, plugins.matcher("superpoint-lightglue")).precision_rules(RTX))


@pytest.fixture(scope="module")
def prepared(graphs: dict[str, onnx.ModelProto], rules: list[PrecisionRule]) -> dict[str, PreparedGraph]:
    return {n: prepare(m, RTX, network=n, rules=rules) for n, m in graphs.items()}


def pair(model: onnx.ModelProto, seed: int = 0) -> Arrays:
    """Points of which 70 % reappear in the second image, shifted, with nearly equal descriptors."""
    width = model.graph.input[1].type.tensor_type.shape.dim[2].dim_value
    random = np.random.default_rng(seed)
    points = [random.uniform((0, 0), (640, 480), (1, K, 2)).astype(np.float32) for _ in range(2)]
    descriptors = [random.standard_normal((1, K, width)).astype(np.float32) for _ in range(2)]
    same = int(K * 0.7)
    descriptors[1][:, :same] = descriptors[0][:, :same] + 0.1 * random.standard_normal((1, same, width))
    points[1][:, :same] = points[0][:, :same] + 5
    feeds: Arrays = {}
    for i in range(2):
        d = descriptors[i] / np.linalg.norm(descriptors[i], axis=-1, keepdims=True)
        feeds |= {
            f"keypoints{i}": points[i],
            f"descriptors{i}": d.astype(np.float32),
            f"count{i}": np.array([K - i], np.int32),
        }
        feeds[f"size{i}"] = np.array([[480, 640]], np.float32)
    return feeds


def runtime(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in model.graph.output]
    return dict(zip(names, session.run(names, feeds), strict=True))


class GatherElements(OpRun):
    """In place of onnx's own, which fails on a batch of one."""

    op_domain = ""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        return (np.take_along_axis(data, indices, axis),)


def rounding(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    names = [o.name for o in model.graph.output]
    with np.errstate(all="ignore"):
        return dict(zip(names, ReferenceEvaluator(model, new_ops=[GatherElements]).run(names, feeds), strict=True))


@pytest.mark.parametrize("name", ["extractor", "matcher"])
def test_graphs_are_typed_and_stable(name: str, prepared: dict[str, PreparedGraph], rules: list[PrecisionRule]) -> None:
    model = prepared[name].model
    onnx.checker.check_model(model, full_check=True)
    assert type_problems(model) == []
    assert [f for f in lint(model, RTX) if f.severity == "error"] == []
    again = to_half(model, rules, network=name)[0]
    assert list(again.graph.node) == list(model.graph.node)


def test_the_rules_reach_what_they_name(prepared: dict[str, PreparedGraph]) -> None:
    """A rule that matches nothing (a renamed module) would keep nothing, silently."""
    outside = "normalised positions, padding masks and the assignment"
    expected = {"extractor": {"detector logits", "grey values"}, "matcher": {"positions", "assignment", outside}}
    for name, words in expected.items():
        record = prepared[name].precision
        assert record is not None
        assert words <= set(record.reasons())
        assert record.converted > 15
    types = TypeTable(prepared["matcher"].model.graph, 18)
    products = [n for n in prepared["matcher"].model.graph.node if n.op_type == "MatMul"]
    half = [n for n in products if types[n.output[0]] == HALF]
    layers = {n.name.split("/")[0].split(".")[1] for n in half if n.name.startswith("transformers.")}
    assert len(half) == 10 * len(layers)  # 6 projections and 4 products of attention in each layer
    last = f"log_assignment.{len(layers) - 1}"
    wide = {n.name.split("/")[0] for n in products if n not in half}
    assert wide == {"", "posenc.Wr", f"{last}.final_proj", f"{last}.matchability"}
    extractor = prepared["extractor"].model
    types = TypeTable(extractor.graph, 18)
    convolutions = {n.name.split("/")[0]: types[n.output[0]] for n in extractor.graph.node if n.op_type == "Conv"}
    assert [n for n, t in convolutions.items() if t == FLOAT] == ["convPb"]
    assert len(convolutions) == 12


def test_half_matches_are_the_float32_matches(
    graphs: dict[str, onnx.ModelProto], prepared: dict[str, PreparedGraph]
) -> None:
    feeds = pair(graphs["matcher"])
    expected = runtime(graphs["matcher"], feeds)
    found = rounding(prepared["matcher"].model, feeds)
    confident = expected["scores0"] > 0.1
    assert 30 <= confident.sum() <= K  # the comparison is about something
    assert (found["matches0"] == expected["matches0"])[confident].mean() >= 0.99
    assert np.abs(found["scores0"] - expected["scores0"]).max() < 0.05
    assert np.abs(found["scores0"] - expected["scores0"]).max() > 0  # it really computed in half


def test_without_the_rules_rotary_angles_lose_digits(
    graphs: dict[str, onnx.ModelProto], rules: list[PrecisionRule]
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(graphs["matcher"])
    (node,) = [n for n in model.graph.node if n.name == "posenc/node_cos"]
    model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], FLOAT, ["pairs", K, "angles"]))
    feeds = pair(model)
    expected = runtime(model, feeds)[node.output[0]]
    error = {}
    for name, given in (("with", rules), ("without", [])):
        half = prepare(model, RTX, network="matcher", rules=given).model
        error[name] = float(np.abs(rounding(half, feeds)[node.output[0]] - expected).max())
    assert error["with"] < 1e-5
    assert error["without"] > 1e-3


def test_keypoints_in_half_features_stay_near(
    graphs: dict[str, onnx.ModelProto], prepared: dict[str, PreparedGraph]
) -> None:
    """Coordinates are exact (whole pixels of the original); only which pixels are chosen may change."""
    image = np.random.default_rng(3).random((1, 1, 96, 128)).astype(np.float32)
    feeds = {"image": image, "scale": np.ones((1, 2), np.float32), "valid_size": np.array([[96, 128]], np.int32)}
    expected, found = (runtime(m, feeds) for m in (graphs["extractor"], prepared["extractor"].model))
    count = int(expected["count"][0])
    assert count == K
    left, right = ({tuple(p) for p in r["keypoints"][0]} for r in (expected, found))
    assert all(float(v).is_integer() for p in right for v in p)
    assert len(left & right) >= 0.9 * count
    both = [
        (i, j)
        for i, p in enumerate(expected["keypoints"][0])
        for j, q in enumerate(found["keypoints"][0])
        if (p == q).all()
    ]
    for i, j in both:
        assert float(expected["descriptors"][0, i] @ found["descriptors"][0, j]) > 0.999


@pytest.mark.rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("name", ["extractor", "matcher"])
def test_tensorrt_rtx_builds_the_half_graph(
    name: str, prepared: dict[str, PreparedGraph], rtx_builder: ModuleType
) -> None:
    axes = {"images": (1, 2, 2), "height": (96, 128, 256), "width": (96, 128, 256), "pairs": (1, 1, 2)}
    size, complaints = rtx_builder.build(prepared[name].model, axes)
    assert size > 100_000, complaints
    assert rtx_builder.warnings() == []
