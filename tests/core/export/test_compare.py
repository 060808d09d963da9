"""The comparison sees what differs, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchrt.export.compare import compare_matches, compare_tensors, pair_points
from matchrt.matches import Matches
from matchrt.model import Alignment, NetworkSpec, Parity, TensorSpec, Tolerance

LISTS = NetworkSpec(
    name="net",
    inputs=(),
    outputs=tuple(
        TensorSpec(name=n, dtype=d, axes=a, meaning="")
        for n, d, a in (
            ("points", "float32", ("batch", "row", "xy")),
            ("scores", "float32", ("batch", "row")),
            ("count", "int32", ("batch",)),
        )
    ),
)
PARITY = Parity(align={"net": Alignment(points="points", count="count", spare=0)})


def lists(count: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "points": rng.permutation(100)[:20].reshape(1, 10, 2).astype(np.float32),
        "scores": rng.random((1, 10)).astype(np.float32),
        "count": np.array([count], np.int32),
    }


def outliers(
    reference: dict[str, np.ndarray], other: dict[str, np.ndarray], parity: Parity = PARITY
) -> dict[str, float]:
    return {d.tensor: d.outliers for d in compare_tensors(LISTS, reference, other, parity)}


def test_order_and_filler_do_not_matter_in_a_list() -> None:
    a = lists()
    order = np.array([3, 1, 0, 2, 7, 6, 5, 4, 8, 9])
    b = {"points": a["points"][:, order], "scores": a["scores"][:, order], "count": a["count"]}
    b["points"][:, 8:] = -5
    assert outliers(a, b) == {"points": 0, "scores": 0, "count": 0}


def test_a_changed_value_a_lost_row_and_a_changed_count_are_seen() -> None:
    a = lists()
    b = {k: v.copy() for k, v in a.items()}
    b["scores"][0, 2] += 0.01
    assert outliers(a, b) == {"points": 0, "scores": 1 / 8, "count": 0}
    b = {k: v.copy() for k, v in a.items()}
    b["points"][0, 2] += 50.5
    assert outliers(a, b)["points"] == pytest.approx(1 / 8)
    assert outliers(a, b)["scores"] == pytest.approx(1 / 8)
    spare = Parity(align={"net": Alignment(points="points", count="count", spare=1)})
    assert outliers(a, b, spare)["scores"] == 0
    assert outliers(a, lists(count=7))["count"] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_on_one_side_is_an_outlier(bad: float) -> None:
    spec = NetworkSpec(name="n", inputs=(), outputs=LISTS.outputs[1:2])
    a, b = np.zeros((1, 4), np.float32), np.array([[0, 0, bad, 0]], np.float32)
    (difference,) = compare_tensors(spec, {"scores": a}, {"scores": b}, Parity())
    assert (difference.outliers, difference.passed) == (0.25, False)
    (same,) = compare_tensors(spec, {"scores": b}, {"scores": b}, Parity())
    assert same.passed


def test_a_changed_shape_never_passes() -> None:
    spec = NetworkSpec(name="n", inputs=(), outputs=LISTS.outputs[1:2])
    a, b = np.zeros((1, 4), np.float32), np.zeros((1, 5), np.float32)
    (difference,) = compare_tensors(spec, {"scores": a}, {"scores": b}, Parity(default=Tolerance(outliers=0.5)))
    assert not difference.passed


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 4), st.integers(0, 10_000))
def test_pairing_is_the_mutual_nearest_within_the_radius(n: int, m: int, dimensions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((n, dimensions)) * 4, rng.random((m, dimensions)) * 4
    p, q = pair_points(a, b, 0.7)
    distance = np.linalg.norm(a[:, None] - b[None], axis=2)
    expected = {
        (i, int(distance[i].argmin()))
        for i in range(n if m else 0)
        if distance[i].min() <= 0.7 and distance[:, distance[i].argmin()].argmin() == i
    }
    assert set(zip(p.tolist(), q.tolist(), strict=True)) == expected


def matches(points0: list[list[float]], points1: list[list[float]]) -> Matches:
    return Matches(
        keypoints0=np.array(points0, np.float32).reshape(-1, 2),
        keypoints1=np.array(points1, np.float32).reshape(-1, 2),
        scores=np.ones(len(points0), np.float32),
        size0=(10, 10),
        size1=(10, 10),
    )


def test_matches_are_shared_only_where_both_ends_agree() -> None:
    a = matches([[1, 1], [5, 5], [8, 2]], [[2, 2], [6, 6], [9, 9]])
    b = matches([[8, 2], [1, 1.04], [5, 5]], [[9, 9], [2, 2], [6, 1]])
    found = compare_matches("pair", a, b, 0.05)
    assert (found.shared, found.unshared) == (2 / 3, 1)
    assert found.max_px == pytest.approx(0.04, abs=1e-3)
    assert compare_matches("pair", matches([], []), matches([], []), 0.05).shared == 1
    assert compare_matches("pair", a, matches([], []), 0.05).shared == 0


def test_a_short_list_may_have_spare_elements_beyond_the_tolerance() -> None:
    """One of eight is 12.5 %, far above the share; two spare elements let it pass, and a third does not."""
    spec = NetworkSpec(
        name="net",
        inputs=(),
        outputs=(TensorSpec(name="y", dtype="int32", axes=("batch", "k"), meaning="indices"),),
    )
    parity = Parity(tensors={"y": Tolerance(outliers=0.01, spare=2)})
    reference = {"y": np.arange(8, dtype=np.int32)[None]}
    for wrong, passed in ((0, True), (1, True), (2, True), (3, False)):
        other = reference["y"].copy()
        other[0, :wrong] += 1
        (difference,) = compare_tensors(spec, reference, {"y": other}, parity)
        assert difference.passed is passed
        assert difference.outliers == wrong / 8


CHOSEN = NetworkSpec(
    name="matcher",
    inputs=(),
    outputs=(
        TensorSpec(name="matches", dtype="int32", axes=("batch", "k"), meaning="an index, or -1"),
        TensorSpec(name="scores", dtype="float32", axes=("batch", "k"), meaning="of the match"),
    ),
)


def test_the_error_of_what_depends_on_a_choice_is_taken_where_both_chose_alike() -> None:
    """A choice that turns over is counted as one, and does not pass for an error of the score, nor hide among the indices."""
    a = {"matches": np.array([[3, 1, -1, -1, 2]], np.int32), "scores": np.array([[0.5, 0.25, 0, 0, 1]], np.float32)}
    b = {"matches": np.array([[3, -1, -1, 4, 2]], np.int32), "scores": np.array([[0.55, 0, 0, 0.9, 1]], np.float32)}
    parity = Parity(choices={"scores": "matches"})
    matches, scores = compare_tensors(CHOSEN, a, b, parity)
    assert matches.differing == 2 / 4  # of the rows where either has a match
    assert scores.relative == pytest.approx(0.05 / np.sqrt(0.25 + 1), rel=1e-5)
    assert scores.outliers == 3 / 5  # held to tolerances as before
    plain = compare_tensors(CHOSEN, a, b, Parity())
    assert plain[0].differing == 0
    assert plain[1].relative > 0.7
    nothing = {"matches": np.full((1, 5), -1, np.int32), "scores": np.zeros((1, 5), np.float32)}
    assert [d.differing for d in compare_tensors(CHOSEN, nothing, nothing, parity)] == [0, 0]
    assert compare_tensors(CHOSEN, a, nothing, parity)[0].differing == 1
    short = {"matches": a["matches"][:, :4], "scores": a["scores"]}
    matches, scores = compare_tensors(CHOSEN, a, short, parity)
    assert (matches.differing, scores.relative) == (np.inf, np.inf)


def test_a_list_tells_how_many_of_its_points_have_no_partner() -> None:
    reference, other = lists(), lists()
    other["points"][0, :2] += 200
    found = {d.tensor: d.differing for d in compare_tensors(LISTS, reference, other, PARITY)}
    assert found == {"points": 2 / 8, "scores": 0, "count": 0}
