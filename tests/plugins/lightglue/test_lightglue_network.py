from collections.abc import Callable
from types import ModuleType

import kornia.feature
import numpy as np
import pytest
import torch
from torch import Tensor

from matchrt.errors import UsageError
from matchrt.patches import apply_patches, decomposed_layer_norm
from matchrt_lightglue.networks import LightGlue, assignment, attention, lightglue
from matchrt_lightglue.patches import packed_attention

MakePair = Callable[..., tuple[Tensor, ...]]
EQUAL, UNEQUAL = (300, 300), (280, 230)


def in_kornia(network: LightGlue, pair: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The same weights and the same pair in kornia's LightGlue, without early exit and pruning."""
    oracle = kornia.feature.LightGlue(features=None, depth_confidence=-1, width_confidence=-1).eval()
    own = network.state_dict() | {"confidence_thresholds": oracle.state_dict()["confidence_thresholds"]}
    oracle.load_state_dict(own, strict=True)
    images = {}
    for i in (0, 1):
        keypoints, descriptors, _, size = pair[4 * i : 4 * i + 4]
        images[f"image{i}"] = {"keypoints": keypoints, "descriptors": descriptors, "image_size": size.flip(1)}
    with torch.inference_mode():
        return oracle(images)


def worst(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def padded(pair: tuple[Tensor, ...], extra0: int, extra1: int) -> tuple[Tensor, ...]:
    """The pair with tempting rubbish after the counted keypoints: descriptors that the other image has too."""
    out = list(pair)
    for i, extra, other in ((0, extra0, pair[5]), (4, extra1, pair[1])):
        generator = torch.Generator().manual_seed(i)
        rubbish = 500 * torch.rand(len(other), extra, 2, generator=generator)
        alike = other[:, torch.randint(other.shape[1], (extra,), generator=generator)]
        out[i], out[i + 1] = torch.cat((pair[i], rubbish), 1), torch.cat((pair[i + 1], alike), 1)
    return tuple(out)


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("counts", [EQUAL, UNEQUAL], ids=["stacked", "separate"])
def test_scores_and_assignments_are_those_of_kornia(
    matcher: LightGlue, make_pair: MakePair, counts: tuple[int, int], patched: bool
) -> None:
    pair = make_pair(*counts)
    expected = in_kornia(matcher, pair)
    patches = [packed_attention(), decomposed_layer_norm()] if patched else []
    with torch.inference_mode(), apply_patches(matcher, patches):
        got = matcher(*pair)
        layers = matcher.log_assignment_all(*pair)

    accepted = expected["matching_scores0"] > 0.1
    assert accepted.sum() > 100  # otherwise nothing is being compared
    assert expected["matching_scores0"].max() > 0.9
    assert worst(got.scores0, expected["matching_scores0"]) < 2e-5
    assert torch.equal(torch.where(accepted, got.matches0, -1).long(), expected["matches0"])
    assert got.matches0.dtype == torch.int32
    assert len(layers) == 9
    assert worst(layers[-1], expected["log_assignment"]) < 1e-4 * max(1.0, layers[-1].abs().max().item() / 10)


def per_axis(keypoints: Tensor, size: Tensor) -> Tensor:
    half = size.flip(1).unsqueeze(1) / 2
    return (keypoints - half) / half


@pytest.mark.parametrize(
    ("module", "name", "fault"),
    [
        (lightglue, "normalise_keypoints", per_axis),
        (attention, "rotate_pairs", lambda x, cos, sin: torch.cat((x[..., ::2] * cos, x[..., 1::2] * sin), -1)),
        (assignment, "log_sigmoid", torch.sigmoid),
        (attention, "attention", lambda q, k, v, bias: ((q @ k.transpose(2, 3)) @ v).transpose(1, 2).flatten(2)),
    ],
)
def test_a_planted_fault_shows_in_the_scores(
    matcher: LightGlue,
    make_pair: MakePair,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    fault: Callable[..., Tensor],
) -> None:
    pair = make_pair(*EQUAL)
    expected = in_kornia(matcher, pair)["matching_scores0"]
    monkeypatch.setattr(module, name, fault)
    with torch.inference_mode():
        assert worst(matcher(*pair).scores0, expected) > 1e-2


@pytest.mark.parametrize("extras", [(100, 100), (0, 40), (57, 3)])
def test_padded_points_change_nothing(matcher: LightGlue, make_pair: MakePair, extras: tuple[int, int]) -> None:
    pair = make_pair(200, 200)
    with torch.inference_mode():
        alone, with_filler = matcher(*pair), matcher(*padded(pair, *extras))
    assert (alone.scores0 > 0.1).sum() > 100
    assert worst(with_filler.scores0[:, :200], alone.scores0) < 5e-5
    assert torch.equal(with_filler.matches0[:, :200], alone.matches0)
    assert (with_filler.matches0[:, 200:] == -1).all()
    assert (with_filler.scores0[:, 200:] == 0).all()


@pytest.mark.parametrize("place", ["attention", "assignment"])
def test_without_a_mask_padded_points_would_change_the_scores(
    matcher: LightGlue, make_pair: MakePair, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    pair = make_pair(200, 200)
    with torch.inference_mode():
        alone = matcher(*pair)
        if place == "attention":
            monkeypatch.setattr(attention, "KEY_BIAS", 0.0)
        else:
            parts = assignment.MatchAssignment.parts
            monkeypatch.setattr(
                assignment.MatchAssignment,
                "parts",
                lambda self, x0, x1, c0, c1: parts(self, x0, x1, c0 + 999, c1 + 999),
            )
        with_filler = matcher(*padded(pair, 100, 100))
    assert worst(with_filler.scores0[:, :200], alone.scores0) > 1e-2


@pytest.mark.parametrize("counts", [(0, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("totals", [(8, 8), (8, 6)])
def test_no_keypoints_give_no_matches_and_no_nan(
    matcher: LightGlue, make_pair: MakePair, totals: tuple[int, int], counts: tuple[int, int]
) -> None:
    pair = list(make_pair(*totals))
    pair[2], pair[6] = (torch.tensor([count], dtype=torch.int32) for count in counts)
    with torch.inference_mode():
        got = matcher(*pair)
        layers = matcher.forward_training(*pair)
    assert (got.matches0 == -1).all()
    assert (got.scores0 == 0).all()
    assert all(torch.isfinite(t).all() for group in layers for t in group)


def test_one_keypoint_each_matches_as_in_kornia(matcher: LightGlue, make_pair: MakePair) -> None:
    pair = list(make_pair(1, 1))
    pair[5] = pair[1]
    expected = in_kornia(matcher, tuple(pair))
    with torch.inference_mode():
        got = matcher(*pair)
        filled = matcher(*padded(tuple(pair), 4, 6))
    assert got.matches0.tolist() == [[0]]
    assert expected["matching_scores0"].item() > 0.1
    assert worst(got.scores0, expected["matching_scores0"]) < 1e-5
    assert filled.matches0.tolist() == [[0, -1, -1, -1, -1]]
    assert worst(filled.scores0[:, :1], got.scores0) < 1e-5


def test_a_batch_is_its_pairs_also_with_different_counts(matcher: LightGlue, make_pair: MakePair) -> None:
    pair = list(make_pair(120, 120, batch=3))
    pair[2] = torch.tensor([120, 0, 61], dtype=torch.int32)
    pair[6] = torch.tensor([90, 120, 1], dtype=torch.int32)
    pair[3] = torch.tensor([[480.0, 640], [1000, 900], [777, 640]])
    with torch.inference_mode():
        together = matcher(*pair)
        for i in range(3):
            single = matcher(*(tensor[i : i + 1] for tensor in pair))
            assert torch.equal(together.matches0[i], single.matches0[0])
            assert worst(together.scores0[i], single.scores0[0]) < 1e-5


def test_mutual_matches_take_the_first_of_equals() -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(-4, 0, (6, 9, 7)).astype(np.float32)  # few values: ties in every row
    count0, count1 = np.array([9, 9, 5, 0, 1, 9]), np.array([7, 3, 7, 7, 1, 0])
    for i in range(6):  # what the masks leave of padded entries
        table[i, count0[i] :], table[i, :, count1[i] :] = -1e9, -1e9
    got = assignment.mutual_matches(
        torch.from_numpy(table), torch.from_numpy(count0).int(), torch.from_numpy(count1).int()
    )
    for i in range(6):
        for row in range(9):
            expected, score = -1, 0.0
            if row < count0[i] and count1[i]:
                best = int(np.argmax(table[i, row, : count1[i]]))
                if int(np.argmax(table[i, : count0[i], best])) == row:
                    expected, score = best, float(np.exp(table[i, row, best]))
            assert got.matches0[i, row] == expected
            assert got.scores0[i, row] == pytest.approx(score, abs=1e-6)


def test_log_sigmoid_holds_far_out() -> None:
    x = torch.tensor([-200.0, -40, -18, -1e-3, 0, 5, 200])
    exact = -torch.log1p(torch.exp(-x.double().clamp(min=-700)))
    torch.testing.assert_close(assignment.log_sigmoid(x).double(), exact, atol=2e-7, rtol=1e-6)


def test_the_packed_form_is_taken_back(matcher: LightGlue, make_pair: MakePair) -> None:
    pair, names = make_pair(64, 64), list(matcher.state_dict())
    with torch.inference_mode():
        before = matcher(*pair)
        with apply_patches(matcher, [packed_attention()]):
            assert not any(isinstance(m, (attention.SelfBlock, attention.CrossBlock)) for m in matcher.modules())
            during = matcher(*pair)
        after = matcher(*pair)
    assert list(matcher.state_dict()) == names
    assert torch.equal(after.scores0, before.scores0)
    assert worst(during.scores0, before.scores0) < packed_attention().tolerance


def test_training_output_has_gradients_for_every_parameter(make_pair: MakePair) -> None:
    network = LightGlue(input_dim=32, dim=64, heads=2, n_layers=3)
    output = network.forward_training(*make_pair(20, 16, dim=32))
    assert [tuple(t.shape) for t in output.log_assignments] == [(1, 21, 17)] * 3
    assert [len(output.confidences0), len(output.confidences1)] == [2, 2]
    sum(t.sum() for group in output for t in group).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="SIFT"):
        LightGlue(add_scale_ori=True)
    with pytest.raises(UsageError, match="heads"):
        LightGlue(dim=100, heads=3)
