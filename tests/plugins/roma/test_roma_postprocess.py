"""From the dense warp to matches: coordinates, upstream's rules, determinism."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from romatch.models.matcher import RegressionMatcher
from romatch.utils.kde import kde

from matchrt.errors import UsageError
from matchrt_roma.postprocess import (
    MatchSettings,
    candidates,
    centres,
    forward_backward_error,
    postprocess,
    to_pixels,
    to_pixels_as_matchanything,
)
from matchrt_roma.sampling import balanced_sample, best, density, draw, thin_by_grid

SIZES = ((300, 500), (240, 320))


def field(height: int = 24, width: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A plausible warp (2, H, W, 2): near the identity, some of it out of the frame with certainty 0."""
    generator = np.random.default_rng(seed)
    warp = centres(height, width)[None] + 0.1 * generator.standard_normal((2, height, width, 2)).astype(np.float32)
    certainty = generator.random((2, height, width)).astype(np.float32)
    certainty[(np.abs(warp) > 1).any(-1)] = 0
    return np.clip(warp, -1, 1), certainty


def test_identity_maps_every_pixel_centre_to_itself() -> None:
    height, width = 12, 20
    warp = np.repeat(centres(height, width)[None], 2, axis=0)
    result = postprocess(warp, np.full((2, height, width), 0.9, np.float32), ((height, width),) * 2, MatchSettings())
    assert np.allclose(result.keypoints0, result.keypoints1)
    found = {tuple(point) for point in np.round(result.keypoints0, 4).tolist()}
    assert found == {(float(x), float(y)) for x in range(width) for y in range(height)}


def test_pixels_are_upstreams_less_half() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)
    upstream = RegressionMatcher._to_pixel_coordinates(None, torch.from_numpy(points), 300, 500).numpy()
    assert np.allclose(to_pixels(points, (300, 500)), upstream - 0.5, atol=1e-4)


def test_parity_coordinates_bit_for_bit() -> None:
    """The demo's own steps in torch: W/2 * (x + 1) at 640x480, then (k + 0.5) * scale - 0.5 (hloc's scaling)."""
    points = np.random.default_rng(1).uniform(-1, 1, (2000, 2)).astype(np.float32)
    normal = torch.from_numpy(points)
    keypoints = torch.stack((640 / 2 * (normal[..., 0] + 1), 480 / 2 * (normal[..., 1] + 1)), dim=-1)
    scale = np.array((500, 300)) / np.array((640, 480))
    expected = (keypoints + 0.5) * keypoints.new_tensor(scale) - 0.5
    assert np.array_equal(to_pixels_as_matchanything(points, (300, 500)), expected.numpy())
    bias = to_pixels_as_matchanything(points, (300, 500)) - to_pixels(points, (300, 500))
    assert np.allclose(bias, 0.5 * scale, atol=1e-3)


def test_parity_keeps_the_demos_frame_and_scores() -> None:
    warp, certainty = field()
    result = postprocess(warp, certainty, SIZES, MatchSettings(parity=True, top_k=10_000))
    matches, scores = candidates(warp, certainty)
    both = torch.from_numpy(matches)
    k0, k1 = (torch.stack((320 * (p[:, 0] + 1), 240 * (p[:, 1] + 1)), -1) for p in (both[:, :2], both[:, 2:]))
    inside = (k0[:, 0] <= 639) & (k0[:, 1] <= 479) & (k1[:, 0] <= 639) & (k1[:, 1] <= 479)
    expected = int((inside.numpy() & (scores > 0)).sum())
    assert len(result.scores) == expected < len(scores)
    assert set(np.unique(result.scores[result.scores > 0.05])) == {np.float32(1)}


def test_candidates_are_in_upstreams_order() -> None:
    warp, certainty = field()
    grid = torch.from_numpy(centres(24, 32))
    first, second = torch.from_numpy(warp)
    upstream = torch.cat((torch.cat((grid, first), -1), torch.cat((second, grid), -1)), dim=1).reshape(-1, 4)
    matches, scores = candidates(warp, certainty)
    assert np.array_equal(matches, upstream.numpy())
    assert np.array_equal(scores, torch.cat(list(torch.from_numpy(certainty)), dim=1).reshape(-1).numpy())


def test_top_k_is_the_most_certain_and_ordered() -> None:
    warp, certainty = field()
    result = postprocess(warp, certainty, SIZES, MatchSettings(top_k=100))
    assert len(result.scores) == 100
    assert np.array_equal(result.scores, np.sort(certainty.reshape(-1))[::-1][:100])
    again = postprocess(warp, certainty, SIZES, MatchSettings(top_k=100))
    assert np.array_equal(result.keypoints1, again.keypoints1)


def test_equal_scores_are_taken_from_everywhere() -> None:
    chosen = best(np.ones(10_000, np.float32), 500)
    assert len(set(chosen.tolist())) == 500
    counts, _ = np.histogram(chosen, bins=10, range=(0, 10_000))
    assert counts.min() >= 40


def test_confidence_and_zero_certainty() -> None:
    warp, certainty = field()
    result = postprocess(warp, certainty, SIZES, MatchSettings(confidence=0.7, top_k=10_000))
    assert len(result.scores) == int((certainty > 0.7).sum())
    everything = postprocess(warp, certainty, SIZES, MatchSettings(top_k=10_000))
    assert len(everything.scores) == int((certainty > 0).sum()) < certainty.size


@pytest.mark.parametrize("sampling", ["top", "balanced", "grid"])
def test_nothing_certain_is_an_empty_result(sampling: str) -> None:
    warp, certainty = field()
    result = postprocess(warp, np.zeros_like(certainty), SIZES, MatchSettings(sampling=sampling, mutual=2.0))
    assert result.keypoints0.shape == result.keypoints1.shape == (0, 2)
    assert result.scores.shape == (0,)
    assert result.keypoints0.dtype == result.scores.dtype == np.float32


def test_mutual_is_upstreams_consistency() -> None:
    warp, _ = field(32, 32)
    upstream = RegressionMatcher.conf_from_fb_consistency(
        None, torch.from_numpy(warp[:1]), torch.from_numpy(warp[1:]), th=2
    )
    ours = forward_backward_error(warp)[0] < 2
    assert 0.02 < ours.mean() < 0.98
    assert (ours == (upstream[0].numpy() > 0)).mean() > 0.999


def test_mutual_needs_both_directions() -> None:
    warp, certainty = field()
    with pytest.raises(UsageError, match="both directions"):
        postprocess(warp[:1], certainty[:1], SIZES, MatchSettings(mutual=2.0))
    assert len(postprocess(warp[:1], certainty[:1], SIZES, MatchSettings()).scores) > 0


def test_grid_leaves_one_match_a_cell() -> None:
    warp, certainty = field()
    result = postprocess(warp, certainty, SIZES, MatchSettings(sampling="grid", cell=8, top_k=10_000))
    assert len(result.scores) == (24 // 8) * (32 // 8)
    cell = np.floor((result.keypoints0 + 0.5) / (500 / 4, 300 / 3)).astype(int)
    assert len({tuple(entry) for entry in cell.tolist()}) == 12
    matches, scores = candidates(warp, certainty)
    kept = thin_by_grid(matches[:, :2], scores, (1, 1))
    assert scores[kept[0]] == scores.max()


def test_density_is_upstreams() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (1500, 4)).astype(np.float32)
    expected = kde(torch.from_numpy(points), std=0.1, half=False).numpy()
    assert np.abs(density(points) - expected).max() <= 1e-3


def test_density_never_holds_a_square() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (8000, 4)).astype(np.float32)
    tracemalloc.start()
    density(points)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8000 * 8000 * 4 / 4


def test_draw_follows_the_weights() -> None:
    """First draws of many runs: shares as the weights, never a zero, all different within a run."""
    weights = np.array([0.0, 1.0, 2.0, 5.0])
    generator = np.random.default_rng(0)
    runs = np.array([draw(weights, 4, generator) for _ in range(4000)])
    assert runs.shape == (4000, 3)
    assert all(len(set(run)) == 3 for run in runs.tolist())
    shares = np.bincount(runs[:, 0], minlength=4) / 4000
    assert np.abs(shares - weights / 8).max() < 0.03


def test_balanced_sampling_spreads_as_upstream() -> None:
    """A dense half and a sparse half, all certain: both samplers must favour the sparse one alike."""
    generator = np.random.default_rng(3)
    dense = generator.normal(-0.5, 0.03, (6000, 4))
    sparse = generator.normal(0.5, 0.12, (2000, 4))
    matches = np.concatenate((dense, sparse)).astype(np.float32)
    scores = np.full(8000, 0.9, np.float32)

    class Sampler:
        sample_mode, sample_thresh = "threshold_balanced", 0.05

    torch.manual_seed(0)
    theirs, _ = RegressionMatcher.sample(Sampler(), torch.from_numpy(matches), torch.from_numpy(scores), num=1000)
    upstream = float((theirs[:, 0] > 0).float().mean())
    chosen = balanced_sample(matches, scores, 1000, 0.05, np.random.default_rng(0))
    ours = float((matches[chosen, 0] > 0).mean())
    assert len(set(chosen.tolist())) == 1000
    assert upstream > 0.4  # a quarter without balancing
    assert abs(ours - upstream) < 0.05
    assert np.array_equal(chosen, balanced_sample(matches, scores, 1000, 0.05, np.random.default_rng(0)))
    assert not np.array_equal(chosen, balanced_sample(matches, scores, 1000, 0.05, np.random.default_rng(1)))


@pytest.mark.parametrize("arguments", [{"sampling": "all"}, {"top_k": 0}, {"cell": 0}, {"confidence": 1.0}])
def test_settings_refuse(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        MatchSettings(**arguments)  # type: ignore[arg-type]


def test_modules_import_without_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, matchrt_roma.postprocess, matchrt_roma.weights;print('torch' in sys.modules, 'cv2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
