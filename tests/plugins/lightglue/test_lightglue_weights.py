"""Every published naming loads with every key accounted for, and computes what its source computes."""

from collections.abc import Callable
from pathlib import Path

import kornia.feature
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LightGlueConfig, LightGlueForKeypointMatching

from matchrt.errors import WeightsError
from matchrt.weights.account import account, load_into, network_state
from matchrt.weights.apply import apply_rules
from matchrt.weights.readers import read_checkpoint
from matchrt.weights.report import WeightReport
from matchrt_lightglue.networks import LightGlue, SuperPoint
from matchrt_lightglue.weights import EXTRACTOR_SOURCE, weight_rules

Keys = dict[str, dict[str, list[int]]]
State = dict[str, Tensor]
MakePair = Callable[..., tuple[Tensor, ...]]


def load(weights: Path, extractor: Path | None = None) -> tuple[dict[str, nn.Module], WeightReport]:
    files = {"checkpoint": read_checkpoint(weights)}
    if extractor is not None:
        files[EXTRACTOR_SOURCE] = read_checkpoint(extractor)
    networks = {"extractor": SuperPoint().eval(), "matcher": LightGlue().eval()}
    remapped = apply_rules(files, weight_rules("full"))
    report = account(remapped, network_state(networks))
    load_into(networks, remapped, report)
    return networks, report


def random_tensors(shapes: dict[str, list[int]]) -> State:
    generator = torch.Generator().manual_seed(len(shapes))
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def thresholds() -> Tensor:
    return torch.tensor([0.9, 0.8641, 0.8411, 0.8264, 0.8169, 0.8108, 0.8069, 0.8045, 0.8029])


def exact_thresholds() -> Tensor:
    """The values that cvg/LightGlue stores; close to the four digits of `thresholds`."""
    return kornia.feature.LightGlue(features=None).state_dict()["confidence_thresholds"]


@pytest.fixture(scope="module")
def module_naming(published_keys: Keys) -> tuple[State, State]:
    """Extractor and matcher tensors under the names of cvg/LightGlue's modules."""
    matcher = random_tensors(published_keys["lightglue_module"])
    matcher["confidence_thresholds"] = exact_thresholds()
    torch.testing.assert_close(matcher["confidence_thresholds"], thresholds(), atol=5e-5, rtol=0)
    return random_tensors(published_keys["superpoint_flat"]), matcher


def assert_holds(networks: dict[str, nn.Module], extractor: State, matcher: State) -> None:
    for name, source in (("extractor", extractor), ("matcher", matcher)):
        own = networks[name].state_dict()
        assert own.keys() == source.keys() - {"confidence_thresholds"}
        assert all(torch.equal(own[key], source[key]) for key in own)


def assert_accounted(report: WeightReport, loaded: int, backfilled: int = 0, dropped: int = 0) -> None:
    assert report.ok
    kinds = {kind: len(report.of_keys(kind)) for kind in ("loaded", "backfilled", "dropped", "unexpected", "misshapen")}
    assert kinds == {"loaded": loaded, "backfilled": backfilled, "dropped": dropped, "unexpected": 0, "misshapen": 0}
    assert len(report.parameters) == 24 + 251


def test_two_files_with_module_names(tmp_path: Path, module_naming: tuple[State, State]) -> None:
    extractor, matcher = module_naming
    torch.save(extractor, tmp_path / "superpoint_v1.pth")
    torch.save(matcher, tmp_path / "lightglue.pth")
    networks, report = load(tmp_path / "lightglue.pth", tmp_path / "superpoint_v1.pth")
    assert_accounted(report, loaded=251, backfilled=24, dropped=1)
    assert_holds(networks, extractor, matcher)


def test_release_files(tmp_path: Path, published_keys: Keys, module_naming: tuple[State, State]) -> None:
    extractor, matcher = module_naming
    released = {}
    for name, tensor in matcher.items():
        parts = name.split(".")
        if parts[0] == "transformers":  # transformers.3.self_attn.Wqkv.weight was self_attn.3.Wqkv.weight
            parts = [parts[2], parts[1], *parts[3:]]
        released[".".join(parts)] = tensor
    del released["confidence_thresholds"]
    assert {n: list(t.shape) for n, t in released.items()} == published_keys["lightglue_release"]
    torch.save(extractor, tmp_path / "superpoint_v1.pth")
    torch.save(released, tmp_path / "superpoint_lightglue.pth")
    networks, report = load(tmp_path / "superpoint_lightglue.pth", tmp_path / "superpoint_v1.pth")
    assert_accounted(report, loaded=251, backfilled=24)
    assert_holds(networks, extractor, matcher)


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_one_training_checkpoint_with_both(tmp_path: Path, module_naming: tuple[State, State], prefix: str) -> None:
    extractor, matcher = module_naming
    state = {f"{prefix}extractor.{n}": t for n, t in extractor.items()}
    state |= {f"{prefix}matcher.{n}": t for n, t in matcher.items()}
    torch.save({"state_dict": state, "epoch": 7, "optimizer_states": []}, tmp_path / "last.ckpt")
    networks, report = load(tmp_path / "last.ckpt")
    assert_accounted(report, loaded=275, dropped=1)
    assert_holds(networks, extractor, matcher)


def test_a_matcher_alone_under_its_prefix(tmp_path: Path, module_naming: tuple[State, State]) -> None:
    extractor, matcher = module_naming
    torch.save({f"matcher.{n}": t for n, t in matcher.items()}, tmp_path / "matcher.pth")
    torch.save({f"extractor.{n}": t for n, t in extractor.items()}, tmp_path / "extractor.pth")
    networks, report = load(tmp_path / "matcher.pth", tmp_path / "extractor.pth")
    assert_accounted(report, loaded=251, backfilled=24, dropped=1)
    assert_holds(networks, extractor, matcher)


def test_kornia_computes_the_same(
    tmp_path: Path, published_keys: Keys, make_pair: MakePair, calibrate_matcher: Callable[[nn.Module], None]
) -> None:
    oracle = kornia.feature.LightGlue(features=None, depth_confidence=-1, width_confidence=-1).eval()
    assert {n: list(t.shape) for n, t in oracle.state_dict().items()} == published_keys["lightglue_module"]
    calibrate_matcher(oracle)
    torch.save(oracle.state_dict(), tmp_path / "kornia.pth")
    torch.save(random_tensors(published_keys["superpoint_flat"]), tmp_path / "superpoint.pth")
    networks, report = load(tmp_path / "kornia.pth", tmp_path / "superpoint.pth")
    assert_accounted(report, loaded=251, backfilled=24, dropped=1)
    pair = make_pair(150, 150)
    images = {
        f"image{i}": {
            "keypoints": pair[4 * i],
            "descriptors": pair[4 * i + 1],
            "image_size": pair[4 * i + 3].flip(1),
        }
        for i in (0, 1)
    }
    with torch.inference_mode():
        expected, got = oracle(images), networks["matcher"](*pair)
    assert (expected["matching_scores0"] > 0.1).sum() > 80
    assert (got.scores0 - expected["matching_scores0"]).abs().max() < 2e-5


@pytest.fixture(scope="module")
def transformers_model(published_keys: Keys) -> LightGlueForKeypointMatching:
    torch.manual_seed(11)
    model = LightGlueForKeypointMatching(LightGlueConfig(depth_confidence=-1.0, width_confidence=-1.0)).eval()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    expected = published_keys["lightglue_hf"] | {
        f"keypoint_detector.{name}": shape for name, shape in published_keys["superpoint_hf"].items()
    }
    assert shapes == expected
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            scale = (
                0.05
                if tensor.ndim < 2
                else (5.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else 0.5)
                * tensor.shape[1:].numel() ** -0.5
            )
            tensor.normal_(std=scale)
            if name.endswith("final_projection.weight"):
                tensor.mul_(0.04).add_(12 * torch.eye(256))
            if name.endswith("matchability.bias"):
                tensor.fill_(3.0)
            if name.endswith("layer_norm.weight"):
                tensor.add_(1)
            if name.endswith("mlp.fc2.weight"):
                tensor.mul_(0.2)
        # As the conversion from the published file leaves them: one projection for queries and keys.
        for layer in model.transformer_layers:
            layer.cross_attention.k_proj.load_state_dict(layer.cross_attention.q_proj.state_dict())
    return model


def test_transformers_computes_the_same(
    tmp_path: Path, transformers_model: LightGlueForKeypointMatching, make_pair: MakePair
) -> None:
    save_file({n: t.clone() for n, t in transformers_model.state_dict().items()}, tmp_path / "model.safetensors")
    networks, report = load(tmp_path / "model.safetensors")
    assert_accounted(report, loaded=329)

    pair = make_pair(150, 150, size1=(480, 640))  # transformers takes one size for both images
    keypoints, descriptors = (torch.stack((pair[i], pair[i + 4]), dim=1) for i in (0, 1))
    mask = torch.ones(1, 2, 150, dtype=torch.int64)
    mask[0, 1, 140:] = 0
    with torch.inference_mode():
        matches, scores, *_ = transformers_model._match_image_pair(keypoints, descriptors, 480, 640, mask=mask)
        got = networks["matcher"](*pair[:6], torch.tensor([140], dtype=torch.int32), pair[7])
    assert (scores[0] > 0.1).sum() > 80  # rows: image 0, image 1
    assert (got.scores0 - scores[:1]).abs().max() < 1e-4
    accepted = got.scores0 > transformers_model.config.filter_threshold
    assert torch.equal(torch.where(accepted, got.matches0, -1), matches[:1].int())

    image = torch.rand(1, 1, 72, 88)
    with torch.inference_mode():
        features = transformers_model.keypoint_detector.encoder(image)[0]
        theirs = transformers_model.keypoint_detector.descriptor_decoder.conv_descriptor_b(
            torch.relu(transformers_model.keypoint_detector.descriptor_decoder.conv_descriptor_a(features))
        )
        ours = networks["extractor"].forward_dense(image).descriptors
    torch.testing.assert_close(ours, nn.functional.normalize(theirs, dim=1), atol=1e-6, rtol=0)


def test_transformers_with_two_different_cross_projections_is_refused(
    tmp_path: Path, transformers_model: LightGlueForKeypointMatching
) -> None:
    state = {n: t.clone() for n, t in transformers_model.state_dict().items()}
    state["transformer_layers.4.cross_attention.k_proj.weight"][0, 0] += 1
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"layers\.4\.cross_attention.*same"):
        load(tmp_path / "model.safetensors")


def test_foreign_and_missing_tensors_are_named(tmp_path: Path, module_naming: tuple[State, State]) -> None:
    extractor, matcher = module_naming
    torch.save(matcher, tmp_path / "matcher.pth")
    with pytest.raises(WeightsError, match=r"extractor\.conv1a\.weight"):
        load(tmp_path / "matcher.pth")  # no extractor given
    disk = matcher | {"input_proj.weight": torch.zeros(256, 128), "input_proj.bias": torch.zeros(256)}
    torch.save(disk | {f"extractor.{n}": t for n, t in extractor.items()}, tmp_path / "disk.pth")
    with pytest.raises(WeightsError, match=r"input_proj"):
        load(tmp_path / "disk.pth")
    opened = {"backbone.0.0.conv.weight": torch.zeros(64, 1, 3, 3)}
    torch.save(opened, tmp_path / "superpoint_open.pth")
    with pytest.raises(WeightsError, match=r"backbone\.0\.0"):
        load(tmp_path / "matcher.pth", tmp_path / "superpoint_open.pth")


def test_other_thresholds_mean_another_network(tmp_path: Path, module_naming: tuple[State, State]) -> None:
    extractor, matcher = module_naming
    altered = matcher | {"confidence_thresholds": matcher["confidence_thresholds"] + 0.01}
    torch.save(altered | {f"extractor.{n}": t for n, t in extractor.items()}, tmp_path / "altered.pth")
    with pytest.raises(WeightsError, match="confidence_thresholds"):
        load(tmp_path / "altered.pth")


@pytest.mark.parametrize("buffer", [True, False])
def test_a_published_state_loads_strictly_by_itself(module_naming: tuple[State, State], buffer: bool) -> None:
    matcher = dict(module_naming[1])
    if not buffer:
        del matcher["confidence_thresholds"]
    LightGlue().load_state_dict(matcher, strict=True)
