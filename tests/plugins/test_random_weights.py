"""`--random-weights`: the same for a seed, nothing global touched, every stage at work, and no choice left to rounding errors."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from matchrt.export.check import run_network
from matchrt.export.weights import random_weights
from matchrt.images.read import read_image
from matchrt.matches import Matches
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.samples import sample_pairs
from matchrt.settings import resolve
from matchrt_eloftr.networks.network import fuse_backbone

Tensors = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(matcher: str, seed: int, **settings: object) -> tuple[MatcherHooks, str, torch.nn.Module]:
    plugins = get_plugins()
    identifier, _, variant = matcher.partition(":")
    hooks = MatcherHooks(plugins, plugins.matcher(identifier))
    chosen = hooks.matcher.variant(variant)
    values = resolve(hooks.matcher.settings, ("variant", chosen.settings), ("flag", settings), environment={})
    return hooks, variant, random_weights(hooks, chosen, values, seed)[0]


def matched(
    hooks: MatcherHooks, variant: str, network: torch.nn.Module, pair: int, **settings: object
) -> tuple[Tensors, Matches]:
    """All tensors and the matches of a sample pair."""
    chosen = hooks.matcher.variant(variant)
    values = resolve(hooks.matcher.settings, ("variant", chosen.settings), ("flag", settings), environment={})
    images = sample_pairs()[pair]
    tensors, geometry = hooks.preprocess((read_image(images.image0), read_image(images.image1)), values)
    space = dict(tensors)
    for step in hooks.matcher.steps_of(chosen):
        inputs = {n: space[t] for n, t in step.inputs.items()}
        out = run_network(network, hooks.matcher.network(step.network), inputs)
        space.update({t: out[n] for n, t in step.outputs.items()})
    return space, hooks.postprocess(space, geometry, values)


@pytest.mark.parametrize(
    ("matcher", "settings"),
    [
        ("superpoint-lightglue:full", {"size": (64, 96), "keypoints": 32}),
        ("eloftr:full", {"size": (96, 128)}),
        ("eloftr:full", {"size": (96, 128), "form": "deploy"}),
    ],
)
def test_the_seed_decides_and_nothing_global_is_touched(matcher: str, settings: dict[str, object]) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    states = [made(matcher, seed, **settings)[2].state_dict() for seed in (3, 3, 4)]
    assert all(torch.isfinite(t).all() for t in states[0].values())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert any(not torch.equal(states[0][n], states[2][n]) for n in states[0])


def test_eloftr_chooses_the_same_cells_and_pixels_in_float64() -> None:
    size = {"size": (192, 256), "pairs": 1}
    hooks, variant, network = made("eloftr:full", 1, **size)
    exact = copy.deepcopy(network).double()
    found = 0
    for pair in (0, 1):
        tensors, _ = matched(hooks, variant, network, pair, **size)
        inputs = [torch.from_numpy(tensors[n]) for n in ("image0", "image1", "valid0", "valid1")]
        with torch.inference_mode():
            keypoints0, keypoints1, scores, cells, count, _ = exact(*(i.double() for i in inputs[:2]), *inputs[2:])
        number = int(count[0])
        found += number
        assert number == int(tensors["count"][0])
        np.testing.assert_array_equal(tensors["cells"][0][:number], cells[0, :number])
        np.testing.assert_allclose(tensors["keypoints0"][0][:number], keypoints0[0, :number], atol=1e-3)
        np.testing.assert_allclose(tensors["keypoints1"][0][:number], keypoints1[0, :number], atol=0.02)
        np.testing.assert_allclose(tensors["scores"][0], scores[0], atol=1e-4, rtol=0.02)
    assert found > 10


def test_lightglue_finds_many_matches_with_spread_scores() -> None:
    size = {"size": (192, 256), "keypoints": 256}
    hooks, variant, network = made("superpoint-lightglue:full", 1, **size)
    answers = [matched(hooks, variant, network, pair, **size) for pair in (0, 1)]
    for tensors, matches in answers:
        scores = tensors["scores0"][tensors["scores0"] > 0]
        assert len(matches) > 40  # else a comparison hangs on a few entries, and half rounding decides it
        assert len(scores) > len(matches)
        assert scores.max() > 0.7
        assert 0.05 < float(np.median(scores)) < 0.6  # spread, as with trained weights


def test_the_deploy_form_is_the_training_form_fused() -> None:
    settings = {"size": (96, 128)}
    training, deploy = (made("eloftr:full", 5, **settings, form=form)[2] for form in ("training", "deploy"))
    fused = fuse_backbone(training).state_dict()  # type: ignore[arg-type]
    assert all(torch.equal(tensor, fused[name]) for name, tensor in deploy.state_dict().items())
