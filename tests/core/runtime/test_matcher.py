"""A loaded bundle: every kind of image, batches, threads, empty results, closing."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PIL

import matchrt
from matchrt.errors import BackendError, BundleError, UsageError
from matchrt.matches import Matches
from matchrt.samples import sample_pairs

SMALL = {"long_side": 320}


@pytest.fixture(scope="module")
def matcher(mini_bundle: Path) -> matchrt.Matcher:
    return matchrt.load(mini_bundle, settings=SMALL)


@pytest.fixture(scope="module")
def pair() -> tuple[Path, Path]:
    first = sample_pairs()[0]
    return first.image0, first.image1


def equal(a: Matches, b: Matches) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_matches_have_the_promised_shapes(matcher: matchrt.Matcher, pair: tuple[Path, Path]) -> None:
    matches = matcher(*pair)
    assert len(matches) > 20
    assert matches.homography().inliers.mean() > 0.5
    for points, size in ((matches.keypoints0, matches.size0), (matches.keypoints1, matches.size1)):
        assert points.dtype == np.float32
        assert points.shape == (len(matches), 2)
        assert (points > -0.5).all()
        assert (points < np.array(size[::-1]) - 0.5).all()
    assert matches.scores.shape == (len(matches),)
    assert matches.indices is not None
    assert matches.all_keypoints0 is not None
    assert np.array_equal(matches.all_keypoints0[matches.indices[:, 0]], matches.keypoints0)
    assert (matches.backend, matches.precision, matches.random_weights) == ("onnxruntime", "fp32", False)
    assert matches.size0 == PIL.open(pair[0]).size[::-1]


def test_paths_arrays_and_pil_images_give_the_same(matcher: matchrt.Matcher, pair: tuple[Path, Path]) -> None:
    reference = matcher(*pair)
    pictures = [PIL.open(p) for p in pair]
    arrays = [np.asarray(p.convert("RGB")) for p in pictures]
    assert equal(reference, matcher(str(pair[0]), str(pair[1])))
    assert equal(reference, matcher(*pictures))
    assert equal(reference, matcher(*arrays))
    assert equal(reference, matcher(arrays[0], pair[1]))


def test_grey_arrays_are_taken(matcher: matchrt.Matcher, pair: tuple[Path, Path]) -> None:
    grey = np.asarray(PIL.open(pair[0]).convert("L"))
    repeated = np.repeat(grey[..., None], 3, axis=2)
    a, b = matcher(grey, pair[1]), matcher(repeated, pair[1])
    assert a.size0 == b.size0
    assert abs(len(a) - len(b)) <= 2


def test_same_input_gives_the_same_bits(matcher: matchrt.Matcher, pair: tuple[Path, Path]) -> None:
    assert equal(matcher(*pair), matcher(*pair))


def test_a_batch_gives_what_single_pairs_give(matcher: matchrt.Matcher, pair: tuple[Path, Path]) -> None:
    a, b = pair
    image0, image1 = (np.asarray(PIL.open(p).convert("RGB").resize((240, 160))) for p in pair)
    pairs = [(image0, image1), (image1, image0), (image0, image0), (a, b), (b, a)]
    single = [matcher(*p) for p in pairs]
    for size in (2, 3, 5, 9):
        batched = list(matcher.match_many(pairs, batch_size=size))
        assert len(batched) == len(pairs)
        for one, other in zip(single, batched, strict=True):
            assert abs(len(one) - len(other)) <= 1
            shared = {tuple(r) for r in one.indices.tolist()} & {tuple(r) for r in other.indices.tolist()}  # type: ignore[union-attr]
            assert len(shared) >= len(one) - 1
            assert len(one) > 20
            assert np.abs(np.sort(one.scores)[-20:] - np.sort(other.scores)[-20:]).max() < 1e-3
    assert not equal(single[0], single[1])


def test_a_batch_above_what_the_bundle_takes_is_cut(mini_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle's axis "pairs" ends at 16."""
    noise = [np.random.default_rng(s).integers(0, 255, (32, 40), np.uint8) for s in range(18)]
    pairs = [(noise[i], noise[i - 1]) for i in range(18)]
    pairs[1:2] = []  # 17 are left
    with matchrt.load(mini_bundle, settings={"long_side": None, "threshold": 0.0}) as matcher:
        assert {a.name: a.max for a in matcher.manifest.axes}["pairs"] == 16
        single = [matcher(*p) for p in pairs]
        session, sizes = matcher.sessions()["matcher"], []
        plain = session.run
        monkeypatch.setattr(session, "run", lambda i: sizes.append(len(i["descriptors0"])) or plain(i))
        together = list(matcher.match_many(pairs, batch_size=20))
    assert sizes == [16, 1]
    for one, other in zip(single, together, strict=True):
        assert abs(len(one) - len(other)) <= 1
        assert len(one) > 0


def test_neighbours_of_equal_shapes_run_together(matcher: matchrt.Matcher, monkeypatch: pytest.MonkeyPatch) -> None:
    wide, tall = (np.random.default_rng(0).integers(0, 255, size, np.uint8) for size in ((32, 48), (48, 32)))
    pairs = [(wide, wide), (wide, wide), (tall, tall), (tall, tall), (tall, tall), (wide, wide)]
    session, sizes = matcher.sessions()["extractor"], []
    plain = session.run
    monkeypatch.setattr(session, "run", lambda i: sizes.append(i["image"].shape[::2]) or plain(i))
    found = list(matcher.match_many(pairs, batch_size=6, long_side=None))
    assert sizes == [(2, 32), (2, 32), (3, 48), (3, 48), (1, 32), (1, 32)]
    assert [m.size0 for m in found] == [p[0].shape for p in pairs]


def test_threads_get_the_same_answers(matcher: matchrt.Matcher, pair: tuple[Path, Path]) -> None:
    jobs = [pair, pair[::-1]] * 4
    expected = [matcher(*j) for j in jobs[:2]]
    with ThreadPoolExecutor(4) as pool:
        for i, result in enumerate(pool.map(lambda j: matcher(*j), jobs)):
            assert equal(result, expected[i % 2])


def test_an_image_without_keypoints_gives_an_empty_result(matcher: matchrt.Matcher, pair: tuple[Path, Path]) -> None:
    tiny = np.full((2, 3), 128, np.uint8)
    small = matcher.settings["long_side"]
    for images in ((tiny, pair[1]), (pair[0], tiny), (tiny, tiny)):
        matches = matcher(*images, long_side=None)
        assert matches.keypoints0.shape == matches.keypoints1.shape == (0, 2)
        assert matches.scores.shape == (0,)
        assert matches.homography().matrix is None
        assert matches.fundamental().matrix is None
        assert matches.draw().ndim == 3
    assert matcher.settings["long_side"] == small


def test_saved_matches_read_back(matcher: matchrt.Matcher, pair: tuple[Path, Path], tmp_path: Path) -> None:
    matches = matcher(*pair)
    matches.save(tmp_path / "m.npz")
    matches.save(tmp_path / "m.json")
    with np.load(tmp_path / "m.npz", allow_pickle=False) as data:
        assert np.array_equal(data["keypoints1"], matches.keypoints1)
        assert np.array_equal(data["scores"], matches.scores)
    data = json.loads((tmp_path / "m.json").read_text())
    assert np.array_equal(np.array(data["keypoints0"], np.float32), matches.keypoints0)


def test_settings_are_checked_and_their_origin_is_known(mini_bundle: Path, pair: tuple[Path, Path]) -> None:
    matcher = matchrt.load(mini_bundle, threshold=0.5)
    assert matcher.settings.origin("threshold") == "flag"
    assert matcher.settings.origin("long_side") == "bundle"
    assert matcher.settings["long_side"] == 320
    with pytest.raises(UsageError, match="did you mean|unknown setting"):
        matcher(*pair, treshold=0.1)
    with pytest.raises(UsageError, match="baked"):
        matcher(*pair, keypoints=5)
    with pytest.raises(UsageError, match="out of range"):
        matcher(*pair, threshold=3)


def test_the_environment_sets_settings(mini_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATCHRT_SET_THRESHOLD", "0.25")
    matcher = matchrt.load(mini_bundle)
    assert (matcher.settings["threshold"], matcher.settings.origin("threshold")) == (0.25, "environment")
    assert matchrt.load(mini_bundle, threshold=0.75).settings["threshold"] == 0.75


def test_a_closed_matcher_says_so(mini_bundle: Path, pair: tuple[Path, Path]) -> None:
    with matchrt.load(mini_bundle) as matcher:
        pass
    with pytest.raises(BackendError, match="closed"):
        matcher(*pair)


def test_an_input_beyond_the_contract_is_refused_by_name(matcher: matchrt.Matcher) -> None:
    wide = np.zeros((16, 5000), np.uint8)
    with pytest.raises(BackendError, match=r"input 'image' must be .* with width in 8..4096 by 8"):
        matcher(wide, wide, long_side=None)


def test_what_cannot_be_loaded_says_what_to_do() -> None:
    with pytest.raises(BundleError, match="no matcher is called that"):
        matchrt.load("no-such-matcher")
    with pytest.raises(UsageError, match="weights"):
        matchrt.load("superpoint-lightglue:full")


def test_a_batch_holds_at_least_one_pair(matcher: matchrt.Matcher) -> None:
    with pytest.raises(UsageError, match="batch_size must be at least 1, got 0"):
        list(matcher.match_many([], batch_size=0))
