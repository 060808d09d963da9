"""The published key names, in every known naming, against the full-size network (on the meta device)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
from roma_oracle import make_twins, tiny_config
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from matchrt.errors import WeightsError
from matchrt.weights.account import account, load_into, network_state
from matchrt.weights.apply import Remapped, remap
from matchrt.weights.report import WeightReport
from matchrt_roma.networks import Roma
from matchrt_roma.plugin import random_weights
from matchrt_roma.settings import RomaSettings
from matchrt_roma.weights import MASK_TOKEN_REASON, weight_rules

DATA = Path(__file__).parent / "data"
PREFIX = "matcher.model."


def published(name: str) -> dict[str, Tensor]:
    """Meta tensors with a published file's names, shapes and dtypes."""
    entries = json.loads((DATA / f"{name}.json").read_text())
    return {
        key: torch.empty(entry[1:], dtype=getattr(torch, entry[0]), device="meta") for key, entry in entries.items()
    }


@pytest.fixture(scope="module")
def network() -> Roma:
    with torch.device("meta"):
        return Roma()


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Tensor]:
    return published("roma_keys")


@pytest.fixture(scope="module")
def dinov2() -> dict[str, Tensor]:
    return published("roma_dinov2_keys")


def remapped(checkpoint: Mapping[str, Tensor], dinov2: Mapping[str, Tensor] | None) -> Remapped:
    sources = {"checkpoint": ("roma.ckpt", checkpoint, {})}
    if dinov2 is not None:
        sources["dinov2"] = ("dinov2.pth", dinov2, {})
    return remap(sources, weight_rules())


def report(network: Roma, checkpoint: Mapping[str, Tensor], dinov2: Mapping[str, Tensor] | None) -> WeightReport:
    return account(remapped(checkpoint, dinov2), network_state(network))


def test_the_research_lists_are_whole(checkpoint: dict[str, Tensor], dinov2: dict[str, Tensor]) -> None:
    assert len(checkpoint) == 603
    assert len(dinov2) == 343
    assert sum(tensor.numel() for tensor in checkpoint.values()) == 111_356_534
    assert sum(tensor.numel() for tensor in dinov2.values()) == 304_368_640


def test_every_key_and_parameter_in_one_class(
    network: Roma, checkpoint: dict[str, Tensor], dinov2: dict[str, Tensor]
) -> None:
    result = report(network, checkpoint, dinov2)
    assert result.ok
    assert len(result.keys) == 946
    assert len(result.parameters) == 945
    assert len(result.of_keys("loaded")) == 603
    assert len(result.of_keys("backfilled")) == 342
    (dropped,) = result.of_keys("dropped")
    assert (dropped.origin.key, dropped.reason) == ("mask_token", MASK_TOKEN_REASON)


@pytest.mark.parametrize(
    "prefix", ["", "model.", "module.", "module.matcher.model.", "_orig_mod.module.matcher.model.", "matcher."]
)
def test_any_stack_of_prefixes(
    network: Roma, checkpoint: dict[str, Tensor], dinov2: dict[str, Tensor], prefix: str
) -> None:
    renamed = {prefix + key.removeprefix(PREFIX): tensor for key, tensor in checkpoint.items()}
    assert report(network, renamed, dinov2).ok


def test_prefixes_only_at_the_start(network: Roma, checkpoint: dict[str, Tensor], dinov2: dict[str, Tensor]) -> None:
    odd = dict(checkpoint) | {"decoder.model.decoder.x": torch.empty(1, device="meta")}
    result = report(network, odd, dinov2)
    assert [entry.origin.key for entry in result.of_keys("unexpected")] == ["decoder.model.decoder.x"]


def test_chunked_dinov2(network: Roma, checkpoint: dict[str, Tensor], dinov2: dict[str, Tensor]) -> None:
    chunked = {}
    for key, tensor in dinov2.items():
        first, _, rest = key.partition(".")
        index = rest.split(".")[0]
        chunked[f"blocks.{int(index) // 6}.{rest}" if first == "blocks" else key] = tensor
    assert "blocks.3.23.mlp.fc2.bias" in chunked
    assert report(network, checkpoint, chunked).ok


def test_timm_dinov2_lacks_only_the_mask_token(
    network: Roma, checkpoint: dict[str, Tensor], dinov2: dict[str, Tensor]
) -> None:
    with torch.device("meta"):
        state = timm.create_model("vit_large_patch14_dinov2.lvd142m").state_dict()
    assert len(state) == 342
    result = report(network, checkpoint, state)
    assert result.ok
    assert set(dinov2) - set(state) == {"mask_token"}


def test_register_tokens_are_refused_by_name(network: Roma, checkpoint: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        state = timm.create_model("vit_large_patch14_reg4_dinov2.lvd142m").state_dict()
    with pytest.raises(WeightsError, match=r"register tokens.*'reg_token'"):
        report(network, checkpoint, state)
    official = published("roma_dinov2_keys") | {"register_tokens": torch.empty(1, 4, 1024, device="meta")}
    with pytest.raises(WeightsError, match=r"register tokens.*'register_tokens'"):
        report(network, checkpoint, official)


def test_without_dinov2_the_missing_file_is_named(network: Roma, checkpoint: dict[str, Tensor]) -> None:
    outcome = remapped(checkpoint, None)
    result = account(outcome, network_state(network))
    assert len(result.of_parameters("missing")) == 342
    assert all(entry.name.startswith("dinov2.") for entry in result.of_parameters("missing"))
    with pytest.raises(WeightsError) as error:
        load_into(network, outcome, result)
    assert "dinov2" in str(error.value.hint)


def test_decoder_blocks_never_land_in_dinov2(checkpoint: dict[str, Tensor], dinov2: dict[str, Tensor]) -> None:
    """The trap: 55 of the decoder's tensors have names and shapes of DINOv2's first five blocks."""
    fitting = [
        key
        for key, tensor in checkpoint.items()
        if key.startswith(PREFIX + "decoder.embedding_decoder.")
        and (name := key.removeprefix(PREFIX + "decoder.embedding_decoder.")) in dinov2
        and dinov2[name].shape == tensor.shape
    ]
    assert len(fitting) == 55
    for second in (None, dinov2):
        outcome = remapped(checkpoint, second)
        strays = [
            name
            for name, origins in outcome.origins.items()
            if name.startswith("dinov2.") and any(origin.source != "dinov2" for origin in origins)
        ]
        assert strays == []
    # As the DINOv2 file, a RoMa checkpoint is refused.
    with pytest.raises(WeightsError, match="is a RoMa checkpoint"):
        remap({"checkpoint": ("a", checkpoint, {}), "dinov2": ("b", checkpoint, {})}, weight_rules())


def test_a_cut_decoder_is_missing_not_filled(
    network: Roma, checkpoint: dict[str, Tensor], dinov2: dict[str, Tensor]
) -> None:
    cut = {key: tensor for key, tensor in checkpoint.items() if "embedding_decoder.blocks" not in key}
    result = report(network, cut, dinov2)
    assert len(result.of_parameters("missing")) == 55
    assert all(entry.name.startswith("decoder.embedding_decoder.") for entry in result.of_parameters("missing"))


@pytest.mark.parametrize("naming", ["transformers-5", "hub"])
def test_transformers_dinov2_gives_the_same_features(naming: str) -> None:
    """transformers' own Dinov2Model against ours, its weights renamed by the rules (q, k, v joined)."""
    twins = make_twins(8)
    size = twins.ours.config
    config = Dinov2Config(
        hidden_size=size.vit_dim,
        num_hidden_layers=size.vit_depth,
        num_attention_heads=size.vit_heads,
        image_size=14 * size.vit_grid,
        patch_size=14,
        layer_norm_eps=1e-6,
    )
    theirs = Dinov2Model(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = {_hub_name(name) if naming == "hub" else name: tensor for name, tensor in theirs.state_dict().items()}
    assert any("attention.attention.query" in name for name in state) == (naming == "hub")
    outcome = remapped({"encoder.cnn.x": torch.zeros(1)}, state)
    names = {name for name in twins.ours.state_dict() if name.startswith("dinov2.")}
    assert {name for name in outcome.tensors if name.startswith("dinov2.")} == names
    twins.ours.load_state_dict({name: outcome.tensors[name] for name in names}, strict=False)
    image = torch.rand(1, 3, 112, 112)
    expected = theirs(image).last_hidden_state[:, 1:]
    result = twins.ours.dinov2(image, *twins.ours.dinov2.token_bias(8, 8)).flatten(2).transpose(1, 2)
    assert float((result - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def _hub_name(name: str) -> str:
    for short, long in (("q", "attention.query"), ("k", "attention.key"), ("v", "attention.value")):
        name = name.replace(f".attention.{short}_proj.", f".attention.{long}.")
    return name.replace(".attention.o_proj.", ".attention.output.dense.")


def test_random_weights_fill_every_tensor_and_are_the_seeds() -> None:
    settings = RomaSettings(recipe="upstream", size=(112, 112), upsample_size=(128, 128), leaf=40)
    networks = [Roma(settings, tiny_config()) for _ in range(3)]
    initial = {n: t.clone() for n, t in networks[0].state_dict().items()}
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            assert random_weights(network) is True
    states = [n.state_dict() for n in networks]
    assert [n for n, t in states[0].items() if torch.equal(t, initial[n])] == []
    assert all(torch.equal(t, states[1][n]) for n, t in states[0].items())
    assert any(not torch.equal(t, states[2][n]) for n, t in states[0].items())
