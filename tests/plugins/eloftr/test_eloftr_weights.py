"""Every published naming of the weights, accounted for key by key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from matchrt.errors import WeightsError
from matchrt.weights.account import account
from matchrt.weights.apply import PRIMARY, remap
from matchrt.weights.pictures import dead_leaves
from matchrt_eloftr.networks import EfficientLoFTR, GraphSettings
from matchrt_eloftr.random_weights import fill
from matchrt_eloftr.weights import is_deploy, recognise_stranger, refuse_strangers, rules

KEYS = json.loads((Path(__file__).parent / "data" / "keys.json").read_text("utf-8"))
SETTINGS = GraphSettings((64, 64), (64, 64))


def tensors(naming: str, prefix: str = "") -> dict[str, torch.Tensor]:
    shapes = KEYS["deploy"] if naming == "deploy" else KEYS["upstream"]
    names = KEYS["transformers"] if naming == "transformers" else {name: name for name in shapes}
    return {
        prefix + names[name]: torch.empty(
            shape, device="meta", dtype=torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        )
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def network() -> EfficientLoFTR:
    with torch.device("meta"):
        return EfficientLoFTR(SETTINGS)


@pytest.mark.parametrize("prefix", ["", "matcher."])
@pytest.mark.parametrize(("naming", "count"), [("upstream", 447), ("transformers", 447), ("deploy", 147)])
def test_every_key_of_every_naming_is_loaded(network: EfficientLoFTR, naming: str, count: int, prefix: str) -> None:
    if naming == "deploy":
        with torch.device("meta"):
            network = EfficientLoFTR(SETTINGS, deploy=True)
    state = tensors(naming, prefix)
    assert is_deploy(state) is (naming == "deploy")
    report = account(remap({PRIMARY: ("the file", state, {})}, rules()), network.state_dict())
    assert {entry.kind for entry in report.keys} == {"loaded"}
    assert {entry.kind for entry in report.parameters} == {"loaded"}
    assert len(report.keys) == len(report.parameters) == count


def test_the_published_number_of_parameters(network: EfficientLoFTR) -> None:
    assert sum(p.numel() for p in network.parameters()) == 16_025_216


def test_a_missing_and_a_stray_key_are_told(network: EfficientLoFTR) -> None:
    state = tensors("transformers")
    del state["efficientloftr.backbone.stages.3.blocks.2.conv1.norm.bias"]
    state["efficientloftr.extra"] = torch.empty(1, device="meta")
    report = account(remap({PRIMARY: ("the file", state, {})}, rules()), network.state_dict())
    assert [p.name for p in report.parameters if p.kind == "missing"] == ["backbone.layer3.2.rbr_dense.bn.bias"]
    assert [k.origin.key for k in report.keys if k.kind == "unexpected"] == ["efficientloftr.extra"]


@pytest.mark.parametrize("prefix", ["", "matcher."])
def test_the_original_loftr_is_named(prefix: str) -> None:
    names = [
        prefix + name
        for name in (
            "backbone.conv1.weight",
            "backbone.layer1.0.conv1.weight",
            "loftr_coarse.layers.0.q_proj.weight",
            "fine_preprocess.down_proj.weight",
            "loftr_fine.layers.0.q_proj.weight",
        )
    ]
    with pytest.raises(WeightsError) as caught:
        refuse_strangers(names, "outdoor_ds.ckpt")
    assert "outdoor_ds.ckpt holds the original LoFTR" in caught.value.message
    assert "eloftr_outdoor.ckpt" in (caught.value.hint or "")


@pytest.mark.parametrize("naming", ["upstream", "transformers", "deploy"])
def test_our_own_files_are_no_strangers(naming: str) -> None:
    assert recognise_stranger(tensors(naming, "matcher.")) is None
    refuse_strangers(tensors(naming))


@pytest.mark.parametrize("deploy", [False, True])
def test_random_weights_leave_out_what_all_cells_have_in_common(deploy: bool) -> None:
    torch.manual_seed(0)
    network = EfficientLoFTR(SETTINGS, deploy=deploy).eval()
    fill(network)
    torch.manual_seed(5)
    pictures = [dead_leaves()[..., :128, :160] for _ in range(2)]
    with torch.no_grad():
        coarse0, coarse1, _, _ = network.features(*pictures)
        free = EfficientLoFTR(GraphSettings((128, 160), (128, 160)), deploy=deploy).eval()
        free.load_state_dict(network.state_dict())
        features = torch.cat(free.transform(coarse0, coarse1))
    common = features.mean((0, 2, 3), keepdim=True)
    assert (features - common).square().sum(1).mean() > 1.5 * common.square().sum()  # 0.7 without
