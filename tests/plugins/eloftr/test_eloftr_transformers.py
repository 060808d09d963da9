"""The coarse half, the pyramid and the weights' names against transformers' EfficientLoFTR (another implementation).

Its fine half, pairing and batching differ from the published code and are not compared. Its rotary table is rounded to
float16 here, because the published one is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EfficientLoFTRConfig, EfficientLoFTRForKeypointMatching

from matchrt.weights.apply import PRIMARY, remap
from matchrt_eloftr.networks import EfficientLoFTR, GraphSettings, prepare_for_export
from matchrt_eloftr.weights import rules

SIZE = (192, 256)
SETTINGS = GraphSettings(SIZE, SIZE, top_k=None)
KEYS = json.loads((Path(__file__).parent / "data" / "keys.json").read_text("utf-8"))


class Rounded(torch.nn.Module):
    """The rotary table as the published implementation stores it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        cosine, sine = self.inner(x)
        return cosine.half().float(), sine.half().float()


@pytest.fixture(scope="module")
def networks(make_network: Any, pairs: Any) -> tuple[EfficientLoFTR, Any, tuple[Tensor, Tensor]]:
    """Ours in training form at full size, and transformers' with the same weights."""
    pair = pairs(*SIZE, (16, 8))
    ours = make_network(SETTINGS, pair, small=False)
    other = EfficientLoFTRForKeypointMatching(EfficientLoFTRConfig()).eval()
    other.load_state_dict({KEYS["transformers"][name]: value for name, value in ours.state_dict().items()})
    other.efficientloftr.rotary_emb = Rounded(other.efficientloftr.rotary_emb)
    return ours, other, pair


@torch.no_grad()
def ours_dense(network: EfficientLoFTR, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    coarse0, coarse1, middle, fine = network.features(*pair)
    coarse0, coarse1 = network.transform(coarse0, coarse1)
    map0, map1 = network.pyramid(coarse0, coarse1, middle, fine)
    return torch.cat((coarse0, coarse1)), middle[0], fine[0], torch.cat((map0, map1))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("prepared", [False, True], ids=["published", "prepared"])
def test_dense_tensors_agree(networks: Any, prepared: bool) -> None:
    ours, other, pair = networks
    network = prepare_for_export(ours) if prepared else ours
    coarse, middle, fine, maps = ours_dense(network, pair)
    with torch.no_grad():
        features = other.efficientloftr(torch.stack(pair, 1)).feature_maps
        windows = other.refinement_layer(features[0] / 16.0, list(features[1:]))
    limit = 3e-5 if prepared else 1e-6
    assert relative(coarse, features[0][0]) <= limit
    assert relative(middle, features[2] if features[2].shape[1] == 128 else features[1]) <= limit
    assert relative(fine, features[1] if features[1].shape[1] == 64 else features[2]) <= limit
    full = F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)
    ours0 = F.unfold(full[:1], 8, stride=8).reshape(64, 64, -1).permute(2, 1, 0)
    ours1 = F.unfold(full[1:], 10, stride=8, padding=1).reshape(64, 100, -1).permute(2, 1, 0)
    assert relative(ours0, windows[0][0]) <= limit
    assert relative(ours1, windows[1][0]) <= limit


def test_rounding_of_the_rotary_table_is_seen(networks: Any) -> None:
    """The comparison above is fine enough to notice a float32 rotary table."""
    ours, other, pair = networks
    coarse = ours_dense(ours, pair)[0]
    rounded, other.efficientloftr.rotary_emb = other.efficientloftr.rotary_emb, other.efficientloftr.rotary_emb.inner
    with torch.no_grad():
        exact = other.efficientloftr(torch.stack(pair, 1)).feature_maps[0][0]
    other.efficientloftr.rotary_emb = rounded
    assert relative(coarse, exact) > 1e-6


@pytest.mark.parametrize("prepared", [False, True], ids=["published", "prepared"])
@pytest.mark.parametrize("halves", ["kept", "swapped"])
def test_coarse_match_sets_are_equal(networks: Any, swapped: Any, halves: str, prepared: bool) -> None:
    ours, other, pair = networks
    images, threshold = (pair, 0.2) if halves == "kept" else ((pair[0], swapped(pair[0])), 0.01)
    other.config.coarse_matching_threshold = threshold
    network = prepare_for_export(ours) if prepared else ours
    with torch.no_grad():
        features = other.efficientloftr(torch.stack(images, 1)).feature_maps[0]
        _, scores, indices = other._coarse_matching(features, 8.0)
        found = network(*images)
    row = indices[0, 1]
    expected = {(i, int(j)): float(scores[0, 1, i]) for i, j in enumerate(row.tolist()) if j >= 0}
    kept = found[2][0] > threshold
    ours_set = {(int(c[0]), int(c[1])): float(s) for c, s in zip(found[3][0][kept], found[2][0][kept], strict=True)}
    assert len(expected) > 40
    assert set(ours_set) == set(expected)
    # A score is exp(2 s - ...) and s reaches 400 with these weights: rounding s by one part in 10^6 moves a score by up to 8e-4.
    assert float(torch.stack([features[0, n].flatten(1).norm(dim=0).max() for n in (0, 1)]).prod()) * 10 / 256 > 100
    assert max(abs(ours_set[c] - expected[c]) for c in expected) <= (5e-4 if prepared else 5e-5)


def test_transformers_names_become_ours_by_rule(networks: Any) -> None:
    ours, other, _ = networks
    state = other.state_dict()
    assert set(state) == set(KEYS["transformers"].values())
    remapped = remap({PRIMARY: ("the file", state, {})}, rules())
    assert set(remapped.tensors) == set(ours.state_dict())
    assert all(torch.equal(remapped.tensors[name], value) for name, value in ours.state_dict().items())
