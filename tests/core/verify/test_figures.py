"""Figures of two results, against numbers worked out by hand and numpy's own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from matchrt.errors import UsageError
from matchrt.export.compare import compare_tensors, relative_error
from matchrt.files.pairs import read_pairs
from matchrt.matches import DenseWarp, Matches
from matchrt.model import NetworkSpec, Parity, TensorSpec
from matchrt.verify.bounds import bounds_for, match_failures
from matchrt.verify.figures import match_figures, total_figures
from matchrt.verify.mixed import match_share


def _matches(points0: np.ndarray, points1: np.ndarray, scores: np.ndarray, warp: DenseWarp | None = None) -> Matches:
    return Matches(
        keypoints0=points0.astype(np.float32),
        keypoints1=points1.astype(np.float32),
        scores=scores.astype(np.float32),
        size0=(100, 200),
        size1=(100, 200),
        warp=warp,
    )


def _grid(count: int = 20) -> np.ndarray:
    return np.stack([np.arange(count) * 10.0, (np.arange(count) * 37.0) % 90], axis=1)


def test_moved_matches_are_measured_by_the_larger_distance_of_both_images() -> None:
    a = _grid()
    shift = np.zeros((20, 2))
    shift[0], shift[1], shift[2] = (0.24, 0.32), (0.0, 2.0), (0.05, 0.0)
    scores = np.linspace(0.1, 0.9, 20)
    found = match_figures("p", _matches(a, a, scores), _matches(a, a + shift, scores + 0.01), radius=0.1)
    assert (found.reference, found.other) == (20, 20)
    assert found.same == pytest.approx(18 / 20)
    distances = np.zeros(20)
    distances[:3] = 0.4, 2.0, 0.05
    assert found.coordinates.mean == pytest.approx(distances.mean(), abs=1e-6)
    assert found.coordinates.max == pytest.approx(2.0, abs=1e-5)
    assert found.coordinates.p95 == pytest.approx(np.percentile(distances, 95), abs=1e-5)
    assert found.coordinates.within == pytest.approx((18 / 20, 19 / 20, 19 / 20), abs=1e-6)
    assert found.score_mean == pytest.approx(0.01, abs=1e-6)
    assert found.correlation == pytest.approx(1.0)


def test_lost_and_new_matches_count_against_the_same() -> None:
    a = _grid()
    scores = np.full(20, 0.5)
    other = np.concatenate([a[:15], a[:3] + 500])
    found = match_figures("p", _matches(a, a, scores), _matches(other, other, np.full(18, 0.5)), radius=0.1)
    assert found.same == pytest.approx(15 / 20)
    assert found.unshared == 5
    assert found.coordinates.count == 15
    assert math.isnan(found.correlation)  # no variance
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["correlation"] is None


def test_correlation_is_pearsons() -> None:
    rng = np.random.default_rng(0)
    a, first = _grid(), rng.random(20)
    second = first + 0.3 * rng.random(20)
    found = match_figures("p", _matches(a, a, first), _matches(a, a, second), radius=1.0)
    assert found.correlation == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-6)


def test_nothing_on_either_side_is_the_same() -> None:
    none = _matches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    found = match_figures("p", none, none, radius=0.1)
    assert (found.same, found.unshared, found.coordinates.count) == (1.0, 0, 0)
    bounds = bounds_for(Parity(), "fp32", None, random_weights=False)
    assert match_failures(found, bounds) == []
    total = total_figures([found, found], 0.1)
    assert (total.reference, total.same) == (0, 1.0)


def test_corners_of_a_shifted_homography() -> None:
    """Points moved by (2, 0): both homographies are pure translations, so that all corners are 2 px apart."""
    rng = np.random.default_rng(1)
    a = rng.uniform(0, 100, (40, 2))
    known = np.array([[1, 0, 5.0], [0, 1, 0], [0, 0, 1]])
    found = match_figures(
        "p", _matches(a, a + np.array([5, 0]), np.ones(40)), _matches(a, a + np.array([7, 0]), np.ones(40)), 0.1, known
    )
    assert found.corners_px == pytest.approx(2.0, abs=1e-3)
    assert found.corners_known_px == pytest.approx((0.0, 2.0), abs=1e-3)


def test_a_warp_is_measured_in_pixels_where_the_reference_is_certain() -> None:
    certainty = np.zeros((1, 4, 8), np.float32)
    certainty[0, :2] = 0.9
    warp = np.zeros((1, 4, 8, 2), np.float32)
    moved = warp.copy()
    moved[0, :2, :, 0] += 0.01  # half of 200 px
    moved[0, 2:, :, 0] += 1.0  # where nobody is certain
    sides = [DenseWarp(warp=w, certainty=certainty, size0=(100, 200), size1=(100, 200)) for w in (warp, moved)]
    none = np.zeros((0, 2))
    figures = match_figures("p", *(_matches(none, none, np.zeros(0), s) for s in sides), radius=0.1)
    assert figures.warp is not None
    assert figures.warp.count == 16
    assert figures.warp.mean == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("shift", [0.0, 0.02, 0.2, 2.0])
@pytest.mark.parametrize("lost", [0, 1, 3])
def test_the_search_and_the_verdict_agree_on_what_passes(precision: str, shift: float, lost: int) -> None:
    a = np.stack([np.arange(50) * 10.0, np.zeros(50)], axis=1)
    bounds = bounds_for(Parity(), precision, None, random_weights=False)
    kept = 50 - lost
    found = match_figures(
        "p",
        _matches(a, a, np.ones(50)),
        _matches(a[:kept], a[:kept] + np.array([shift, 0]), np.ones(kept)),
        bounds.radius,
    )
    assert (match_share(found, bounds) <= 1) == (not match_failures(found, bounds))


def test_bounds_are_those_of_issue_4() -> None:
    exact, half = (bounds_for(Parity(), p, None, random_weights=False) for p in ("fp32", "fp16"))
    assert (exact.mean_px, half.mean_px, half.within_1px, half.count) == (0.01, 0.1, 0.995, 0.01)
    assert bounds_for(Parity(), "fp16", 0.5, random_weights=False).mean_px == 0.5
    random = bounds_for(Parity(), "fp16", None, random_weights=True)
    assert (random.matches, random.tensors) == (False, True)


def test_relative_error() -> None:
    a = np.array([3.0, 4.0, -np.inf])
    assert relative_error(a, np.array([3.0, 4.5, -np.inf])) == pytest.approx(0.1)
    assert relative_error(a, np.array([3.0, 4.0, 0.0])) == math.inf
    assert relative_error(a, a[:2]) == math.inf
    assert relative_error(np.zeros(3), np.zeros(3)) == 0.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png", "1 words"),
        ("a.png none.png", "no image at"),
        ("a.png a.png 1 0 0 0 1 0 0 0 x", "a homography is 9 numbers"),
        ("a.png a.png 0 0 0 0 0 0 0 0 0", "not invertible"),
        ("# nothing", "lists no pair"),
    ],
)
def test_a_bad_list_of_pairs_is_refused_by_line(tmp_path: Path, line: str, message: str) -> None:
    from PIL import Image

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "pairs.txt").write_text(f"{line}\n", "utf-8")
    with pytest.raises(UsageError, match=message):
        read_pairs(tmp_path / "pairs.txt")
    with pytest.raises(UsageError, match="cannot read"):
        read_pairs(tmp_path / "absent.txt")


def test_an_infinite_error_is_none_in_json() -> None:
    """A reference of zeros has no relative error; `convert --json` must still print."""
    spec = NetworkSpec(name="n", inputs=(), outputs=(TensorSpec(name="t", dtype="float32", axes=("n",), meaning=""),))
    found = compare_tensors(spec, {"t": np.zeros(3, np.float32)}, {"t": np.full(3, 1e-9, np.float32)}, Parity())
    assert found[0].passed
    assert found[0].relative == math.inf
    assert json.loads(json.dumps(found[0].to_dict(), allow_nan=False))["relative"] is None
