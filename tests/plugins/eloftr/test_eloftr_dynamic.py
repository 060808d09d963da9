"""One graph for a range of sizes and a number of pairs, against the rules and against graphs of fixed size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from matchrt.cli import run as cli
from matchrt.errors import UsageError
from matchrt.export.onnx_export import export_network
from matchrt.graph.prepare import prepare
from matchrt.model import Axis, ExampleInputs, Target
from matchrt_eloftr.networks import EfficientLoFTR, GraphSettings, prepare_for_export
from matchrt_eloftr.networks.network import INPUTS, OUTPUTS
from matchrt_eloftr.spec import NETWORK

SMALLEST, LARGEST = (96, 96), (256, 256)
TRACED = (192, 256)
SIZES = ((96, 128), (192, 256), (256, 160))
FORBIDDEN = ("NonZero", "Scatter", "If", "Loop", "Unique", "Scan", "GridSample", "Einsum", "GatherND", "Mod")
RECIPES: dict[str, dict[str, Any]] = {
    "mutual": {"top_k": 128},
    "one-to-many": {"top_k": 512, "mutual": False, "per_row": 4, "score_floor": 0.001},
}


@pytest.fixture(scope="module")
def network(make_network: Any, pairs: Any) -> EfficientLoFTR:
    return make_network(GraphSettings(TRACED, TRACED, top_k=128), pairs(*TRACED, (16, 8)))


@pytest.fixture(scope="module", params=["mutual", pytest.param("one-to-many", marks=pytest.mark.slow)])
def recipe(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ranged(network: EfficientLoFTR, resettle: Any, recipe: str) -> EfficientLoFTR:
    """The network that takes every size of the range."""
    changed = {"size0": LARGEST, "size1": LARGEST, "smallest": SMALLEST, "valid": "input", **RECIPES[recipe]}
    return prepare_for_export(resettle(network, **changed))


@pytest.fixture(scope="module")
def model(ranged: EfficientLoFTR, pairs: Any) -> onnx.ModelProto:
    axes = {
        0: Axis(name="pairs", min=1, opt=1, max=4),
        2: Axis(name="height", min=SMALLEST[0], opt=192, max=LARGEST[0], divisor=32),
        3: Axis(name="width", min=SMALLEST[1], opt=256, max=LARGEST[1], divisor=32),
    }
    feeds = batch([pairs(*TRACED, (16, 8)), pairs(*TRACED, (0, 16), seed=5)], [(TRACED, TRACED)] * 2)
    dynamic = {n: axes if n.startswith("image") else {0: axes[0]} for n in INPUTS}
    return export_network(ranged, NETWORK, ExampleInputs(tensors=feeds, dynamic=dynamic), Target())


@pytest.fixture(scope="module")
def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def batch(images: list[Any], valid: list[Any]) -> dict[str, np.ndarray]:
    feeds = {f"image{n}": np.concatenate([pair[n].numpy() for pair in images]) for n in (0, 1)}
    return feeds | {f"valid{n}": np.array([v[n] for v in valid], np.int32) for n in (0, 1)}


def masks(size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    return (size[0] - 32, size[1]), (size[0], size[1] - 32)


def test_nothing_forbidden_and_every_axis_named(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert not {n.op_type for n in model.graph.node if n.op_type.startswith(FORBIDDEN)}
    found = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    assert found["image0"] == found["image1"] == ["pairs", 1, "height", "width"]
    assert found["valid0"] == ["pairs", 2]
    assert all(o.type.tensor_type.shape.dim[0].dim_param == "pairs" for o in model.graph.output)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_follows_the_rules_and_equals_its_own_graph(
    network: EfficientLoFTR,
    session: onnxruntime.InferenceSession,
    recipe: str,
    pairs: Any,
    swapped: Any,
    plain: Any,
    differ: Callable[..., Any],
    resettle: Any,
    size: tuple[int, int],
) -> None:
    """Two pairs together, with different valid rectangles; the second with its halves swapped."""
    first, second = pairs(*size, (8, 8)), pairs(*size, (0, 8), seed=3)
    images = [first, (second[0], swapped(second[1]))]
    valid = [masks(size), (size, size)]
    feeds = batch(images, valid)
    outputs = session.run(list(OUTPUTS), feeds)
    fixed = prepare_for_export(resettle(network, size0=size, size1=size, valid="input", **RECIPES[recipe]))
    with torch.no_grad():
        own = [o.numpy() for o in fixed(*(torch.from_numpy(feeds[n]) for n in INPUTS))]
    assert [o.shape for o in outputs] == [o.shape for o in own]
    assert np.abs(outputs[2] - own[2]).max() <= 1e-4
    assert all(np.array_equal(outputs[n], own[n]) for n in (4, 5))
    counts = []
    for entry in (0, 1):
        mutual = recipe == "mutual"
        expected = plain(network).match(*images[entry], 0.005, mutual=mutual, valid=valid[entry])
        found = differ(expected, outputs, 0.005, entry)
        assert not found.extra
        assert found.keypoints0 == 0.0
        assert found.keypoints1 <= 2e-5
        assert found.score <= 1e-4
        slots = int(outputs[4][entry])
        if mutual and slots < RECIPES[recipe]["top_k"]:
            assert not found.missing
        assert found.matches - len(found.missing) >= 8
        counts.append(found.matches)
    assert counts[0] != counts[1]


@pytest.mark.rtx
def test_tensorrt_rtx_builds_the_range(model: onnx.ModelProto, rtx_builder: ModuleType) -> None:
    prepared = prepare(model, Target(backend="tensorrt_rtx"), network="network").model
    size, complaints = rtx_builder.build(
        prepared, {"pairs": (1, 1, 4), "height": (96, 192, 256), "width": (96, 256, 256)}
    )
    assert size > 100_000, complaints


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"valid": "full"}, "valid rectangles as inputs"),
        ({"size1": (256, 224)}, "one range for both images"),
        ({"smallest": (288, 96)}, "288x96, is above 256x256"),
        ({"smallest": (100, 96)}, "smallest is 100x96, not divisible by 32"),
        ({"top_k": 145}, "slots 145"),
        ({"top_k": None}, "slots none"),
    ],
)
def test_ranges_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"size0": LARGEST, "size1": LARGEST, "smallest": SMALLEST, "valid": "input", "top_k": 144}
    GraphSettings(**given)
    with pytest.raises(UsageError) as caught:
        GraphSettings(**{**given, **changes})
    assert words in caught.value.message


@pytest.mark.slow
def test_a_bundle_with_dynamic_sizes_equals_one_of_that_size(
    checkpoints: dict[str, Path], photographs: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole way with the published architecture: 832x480 from a bundle that was traced at 416x416."""
    answers = {}
    for name, options in {
        "ranged": ["--size", "416x416", "--set", "dynamic=true"],
        "fixed": ["--size", "480x832"],
    }.items():
        argv = ["convert", "eloftr", "--weights", str(checkpoints["eloftr"]), "-o", str(tmp_path / name), *options]
        assert cli([*argv, "--set", "recipe=stretch"]) == 0
        capfd.readouterr()
        match = ["match", str(tmp_path / name), str(photographs.first), str(photographs.second), "--threshold", "0.001"]
        wanted = ["--set", "input_size=480x832"] if name == "ranged" else []
        assert cli([*match, *wanted, "--json", "--save", str(tmp_path / f"{name}.npz")]) == 0
        answers[name] = json.loads(capfd.readouterr().out)["matches"]
        if name == "ranged":
            assert cli([*match, "--set", "input_size=384x416"]) == 2
            assert cli([*match, "--set", "input_size=430x416"]) == 2
    assert answers["ranged"] == answers["fixed"] > 20
    with np.load(tmp_path / "ranged.npz") as a, np.load(tmp_path / "fixed.npz") as b:
        assert np.array_equal(a["keypoints0"], b["keypoints0"])
        assert np.abs(a["keypoints1"] - b["keypoints1"]).max() < 1e-3
        assert np.abs(a["scores"] - b["scores"]).max() < 1e-3
