"""Pictures hold what they claim: places, colours, sizes, words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PILImage
from skimage import data as photographs

from matchrt.draw import canvas, heat_map, side_by_side, warp_overlay
from matchrt.draw.matches import OUTLIER
from matchrt.errors import UsageError

Array = NDArray[Any]
BLACK = np.zeros((600, 800, 3), np.uint8)
NONE = np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0)


def strip_height(picture: Array, board_height: int) -> int:
    return picture.shape[0] - board_height


def near(colour: Array, wanted: Any, tolerance: float = 40) -> bool:
    return bool(np.abs(colour.astype(float) - np.asarray(wanted, float)).max() <= tolerance)


def one(x0: float, y0: float, x1: float, y1: float, score: float = 1.0) -> tuple[Array, Array, Array]:
    return np.array([[x0, y0]]), np.array([[x1, y1]]), np.array([score])


def test_a_match_joins_its_two_points() -> None:
    picture = side_by_side(BLACK, BLACK, *one(100, 500, 700, 50))
    gap = picture.shape[1] - 1600
    assert 4 <= gap <= 20
    yellow = canvas.colours(np.array([1.0]))[0]
    start, end = np.array([100, 500]), np.array([700 + 800 + gap, 50])
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = np.round(start + share * (end - start)).astype(int)
        assert near(picture[y, x], yellow), share
    assert picture[300, 200].tolist() == [0, 0, 0]


def test_points_follow_each_images_own_scale() -> None:
    small = np.zeros((150, 100, 3), np.uint8)
    picture = side_by_side(BLACK, small, *one(10, 10, 99, 149))
    # the second image is shown at 600x400; the centre of its last pixel is at ((99 + .5) * 4 - .5, (149 + .5) * 4 - .5)
    x, y = picture.shape[1] - 400 + 397.5, 597.5
    window = picture[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].reshape(-1, 3)
    assert near(window.max(axis=0), canvas.colours(np.array([1.0]))[0])


def test_neither_image_is_stretched_and_the_photographs_show() -> None:
    left, right = photographs.astronaut(), photographs.camera()[:256]
    picture = side_by_side(left, right, *NONE)
    assert np.array_equal(picture[:512, :512], left)
    shown = picture[:512, -1024:]
    assert shown.shape[1] / shown.shape[0] == right.shape[1] / right.shape[0]
    assert np.abs(shown[::2, ::2, 0].astype(float) - right).mean() < 4


def test_a_panorama_beside_a_square_keeps_its_shape() -> None:
    picture = side_by_side(np.full((400, 3200, 3), 99, np.uint8), np.full((400, 400, 3), 99, np.uint8), *NONE)
    row = picture[50, :, 0]
    gap = np.flatnonzero(row != 99)
    left, height = gap[0], np.flatnonzero(picture[:, 5, 0] != 99)[0]
    assert left / height == pytest.approx(8, rel=0.01)
    assert (picture.shape[1] - gap[-1] - 1) / height == pytest.approx(1, rel=0.01)


def test_colour_tells_the_score() -> None:
    points = np.stack([np.full(5, 50.0), np.linspace(100, 500, 5)], axis=1)
    scores = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    picture = side_by_side(BLACK, BLACK, points, points, scores)
    seen = picture[points[:, 1].astype(int), 50]
    expected = canvas.colours(scores)
    assert all(near(a, b, 6) for a, b in zip(seen, expected, strict=True))
    assert expected[0][2] > expected[0][1], "low scores are blue"
    assert expected[4].tolist()[:2] > [200, 200], "high scores are yellow"


def test_scores_above_one_set_the_scale() -> None:
    points = np.array([[50.0, 100], [50, 300]])
    picture = side_by_side(BLACK, BLACK, points, points, np.array([25.0, 50.0]))
    assert near(picture[300, 50], canvas.colours(np.array([1.0]))[0], 6)
    assert near(picture[100, 50], canvas.colours(np.array([0.5]))[0], 6)


def test_inliers_stand_out_from_outliers() -> None:
    points = np.array([[50.0, 100], [50, 300]])
    inliers = np.array([True, False])
    picture = side_by_side(BLACK, BLACK, points, points, np.ones(2), inliers)
    good, bad = picture[100, 400], picture[300, 400]
    assert near(picture[300, 50], OUTLIER, 6)
    assert bad[0] > 2 * max(bad[1], bad[2]), "outliers are red"
    assert good.max() > 1.3 * bad.max(), "and fainter"
    assert near(good, canvas.colours(np.array([1.0]))[0], 60)


def test_an_inlier_lies_over_an_outlier() -> None:
    points = np.array([[50.0, 100], [50, 100]])
    for inliers in ([True, False], [False, True]):
        picture = side_by_side(BLACK, BLACK, points, points, np.array([0.9, 1.0]), np.array(inliers))
        assert not near(picture[100, 400], OUTLIER, 80)


def test_too_many_matches_keep_the_best_in_proportion() -> None:
    count = 600
    points = np.stack([np.full(count, 50.0), np.linspace(0, 599, count)], axis=1)
    scores = np.linspace(0, 1, count)
    inliers = np.arange(count) % 3 > 0
    from matchrt.draw.matches import _chosen

    drawn = _chosen(scores, inliers, 90)
    assert len(drawn) == 90
    assert inliers[drawn].sum() == 60
    assert scores[drawn].min() > 0.84
    assert not inliers[drawn[:30]].any(), "outliers come first and so lie below"
    few = side_by_side(BLACK, BLACK, points, points, scores, max_lines=90)
    assert not near(few[10, 400], few[590, 400], 30)
    assert few[10, 400].tolist() == [0, 0, 0]
    assert not np.array_equal(few[600:], side_by_side(BLACK, BLACK, points, points, scores)[600:]), "and it says so"


def test_captions() -> None:
    plain = side_by_side(BLACK, BLACK, *NONE)
    assert strip_height(plain, 600) >= 24
    strip = plain[600:]
    assert strip.max() > 200, "there is text"
    named = side_by_side(BLACK, BLACK, *NONE, caption="matcher · 0 matches")
    assert not np.array_equal(named[600:], strip)
    assert np.array_equal(named[:600], plain[:600])
    two = side_by_side(BLACK, BLACK, np.zeros((2, 2)), np.zeros((2, 2)), np.zeros(2))
    assert not np.array_equal(two[600:], strip)
    endless = side_by_side(BLACK, BLACK, *NONE, caption="very long " * 100)
    assert endless.shape == plain.shape


@pytest.mark.parametrize(
    ("count", "inliers", "words"),
    [(0, None, "no matches"), (1, None, "1 match"), (3, None, "3 matches"), (3, [1, 0, 1], "3 matches · 2 inliers")],
)
def test_counts(count: int, inliers: Any, words: str) -> None:
    from matchrt.draw.matches import _counts

    assert _counts(count, None if inliers is None else np.array(inliers, bool)) == words


@pytest.mark.parametrize(
    ("size0", "size1"),
    [
        ((1, 1), (1, 1)),
        ((12, 16), (8, 8)),
        ((1, 5000), (5000, 1)),
        ((5000, 1), (5000, 1)),
        ((1, 5000), (1, 5000)),
        ((3000, 4000), (100, 90)),
        ((4000, 6000), (4000, 2000)),
    ],
)
def test_any_size_gives_a_picture_of_reasonable_size(size0: tuple[int, int], size1: tuple[int, int]) -> None:
    images = [np.full((*size, 3), 99, np.uint8) for size in (size0, size1)]
    points = [np.array([[0, 0], [size[1] - 1, size[0] - 1]]) for size in (size0, size1)]
    picture = side_by_side(*images, *points, np.array([0.2, 0.9]), np.array([True, False]))
    assert 320 <= picture.shape[1] <= canvas.MAX_WIDTH
    assert picture.shape[0] <= 2 * canvas.MAX_WIDTH + 100


def test_grey_images_and_other_dtypes() -> None:
    grey = photographs.camera()
    points, _, scores = one(10, 10, 20, 20)
    picture = side_by_side(grey, grey[..., None], points.astype(np.float32), points, scores.astype(np.float32))
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


def test_the_input_is_left_alone_and_the_picture_repeats() -> None:
    left = photographs.astronaut()
    before = left.copy()
    left.flags.writeable = False
    arguments = np.random.default_rng(0).uniform(0, 500, (2, 50, 2))
    pictures = [side_by_side(left, left, *arguments, np.linspace(0, 1, 50)) for _ in range(2)]
    assert np.array_equal(left, before)
    assert np.array_equal(*pictures)


def test_points_that_cannot_be_drawn_are_left_out() -> None:
    points = np.array([[np.nan, 1], [np.inf, 1], [1e30, 5], [-1e9, 5]])
    picture = side_by_side(BLACK, BLACK, points, np.zeros((4, 2)), np.array([np.nan, np.inf, 1, 1]))
    assert picture.shape[0] > 600


def test_files(tmp_path: Path) -> None:
    picture = side_by_side(BLACK, BLACK, *one(1, 2, 3, 4), path=tmp_path / "a.PNG")
    assert np.array_equal(np.array(PILImage.open(tmp_path / "a.PNG")), picture)
    for name, kind in (("a.jpg", "JPEG"), ("a.webp", "WEBP")):
        side_by_side(BLACK, BLACK, *NONE, path=tmp_path / name)
        assert PILImage.open(tmp_path / name).format == kind
    with pytest.raises(UsageError, match="bmp") as caught:
        side_by_side(BLACK, BLACK, *NONE, path=tmp_path / "a.bmp")
    assert ".png" in (caught.value.hint or "")
    assert len(list(tmp_path.iterdir())) == 3


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(UsageError, match=r"\(3, 2\)"):
        side_by_side(BLACK, BLACK, np.zeros((3, 2)), np.zeros((2, 2)), np.zeros(2))
    with pytest.raises(UsageError, match=r"\(3,\)"):
        side_by_side(BLACK, BLACK, *one(1, 2, 3, 4), np.zeros(3, bool))
    with pytest.raises(UsageError, match="float32"):
        side_by_side(BLACK.astype(np.float32), BLACK, *NONE)
    with pytest.raises(UsageError, match="empty"):
        side_by_side(BLACK[:0], BLACK, *NONE)


# dense --------------------------------------------------------------------------------------------------------------


def grid(height: int, width: int) -> Array:
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y], axis=-1).astype(np.float32)


def test_the_warp_brings_image_1_onto_image_0() -> None:
    left = photographs.astronaut()
    shifted = np.roll(left, (7, 30), axis=(0, 1))
    warp = grid(512, 512) + np.array([30, 7])
    alone = warp_overlay(np.zeros_like(left), shifted, warp, opacity=1.0)
    assert np.array_equal(alone[:500, :480], left[:500, :480])
    assert np.abs(warp_overlay(left, shifted, warp)[:500, :480].astype(int) - left[:500, :480]).max() <= 1
    assert np.allclose(warp_overlay(left, shifted, warp)[:, 490:], left[:, 490:] * 0.45, atol=1.01), "outside: dark"


def test_certainty_and_missing_warp() -> None:
    left, right = np.full((40, 60), 200, np.uint8), np.full((50, 50, 3), 100, np.uint8)
    warp = grid(40, 60) * 0.8
    warp[:, :10] = np.nan
    certainty = np.ones((40, 60))
    certainty[:20] = 0
    picture = warp_overlay(left, right, warp, certainty, opacity=0.5)
    assert picture[30, 30].tolist() == [150] * 3
    assert picture[10, 30].tolist() == [90] * 3
    assert picture[30, 5].tolist() == [90] * 3
    with pytest.raises(UsageError, match=r"\(40, 60, 2\)"):
        warp_overlay(left, right, warp[:10])
    with pytest.raises(UsageError, match="certainty"):
        warp_overlay(left, right, warp, certainty[:3])


def test_heat_map(tmp_path: Path) -> None:
    image = np.full((64, 96, 3), 128, np.uint8)
    values = np.zeros((8, 12))
    values[:, 6:] = 1
    picture = heat_map(image, values, opacity=1.0, path=tmp_path / "a.png")
    assert picture[30, 5].tolist() == canvas.colours(np.array([0.0]))[0].tolist()
    assert picture[30, 90].tolist() == canvas.colours(np.array([1.0]))[0].tolist()
    assert np.array_equal(heat_map(image, values, opacity=0.0), image)
    assert np.array_equal(heat_map(image, np.full((4, 4), np.nan)), image)
    assert (tmp_path / "a.png").exists()
    wide = heat_map(np.zeros((100, 5000), np.uint8), values)
    assert wide.shape == (48, 2400, 3)
    with pytest.raises(UsageError, match=r"\(3, 4, 5\)"):
        heat_map(image, np.zeros((3, 4, 5)))


def test_heat_map_on_grey_with_a_scale() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    image[..., 0] = 200
    plain = heat_map(image, np.zeros((4, 4)), opacity=0.0, grey=True)
    assert (plain == 60).all()  # 0.299 of 200
    named = heat_map(image, np.zeros((4, 4)), opacity=0.0, grey=True, legend="certainty")
    changed = np.argwhere((named != plain).any(axis=2))
    assert changed[:, 0].min() > 150
    assert changed[:, 1].max() < 150
    colours = {tuple(c) for c in named[changed[:, 0], changed[:, 1]]}
    assert {tuple(c) for c in canvas.colours(np.array([0.0, 1.0]))} <= colours
    assert np.array_equal(
        heat_map(np.zeros((6, 6, 3), np.uint8), np.zeros((2, 2)), opacity=0, legend="x"), np.zeros((6, 6, 3))
    )
