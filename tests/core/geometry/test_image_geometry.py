"""Original and network pixels: the inverse, the centre conventions, the corners."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchrt.errors import UsageError
from matchrt.geometry import ImageGeometry

sides = st.integers(1, 8000)
sizes = st.tuples(sides, sides)


@settings(max_examples=1500, deadline=None)
@given(
    original=sizes,
    valid=st.tuples(st.integers(8, 2048), st.integers(8, 2048)),
    padding=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    centre=st.sampled_from(["integer", "half"]),
    data=st.data(),
)
def test_there_and_back(
    original: tuple[int, int], valid: tuple[int, int], padding: tuple[int, int], centre: Any, data: st.DataObject
) -> None:
    offset = tuple(data.draw(st.integers(0, p)) for p in padding)
    network = valid[0] + padding[0], valid[1] + padding[1]
    geometry = ImageGeometry.from_resize(original, valid, network, offset=offset, pixel_centre=centre)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    corners = np.array([[0, 0], [original[1] - 1, original[0] - 1], [-0.5, -0.5]], np.float64)
    points = np.vstack([rng.uniform(0, 1, (5, 2)) * np.array(original[::-1]) - 0.5, corners])
    assert np.abs(geometry.to_original(geometry.to_network(points)) - points).max() <= 1e-9
    assert geometry.inside_original(points).all()


@settings(max_examples=1000, deadline=None)
@given(original=st.tuples(st.integers(1, 1024), st.integers(1, 1024)), data=st.data())
def test_in_float32_the_inverse_is_good_to_a_ten_thousandth_of_a_pixel(
    original: tuple[int, int], data: st.DataObject
) -> None:
    valid = tuple(data.draw(st.integers(max(1, side // 2), 1024)) for side in original)
    geometry = ImageGeometry.from_resize(original, valid)  # type: ignore[arg-type]
    points = (np.random.default_rng(1).uniform(0, 1, (20, 2)) * np.array(original[::-1])).astype(np.float32)
    back = geometry.to_original(geometry.to_network(points))
    assert back.dtype == np.float32
    assert np.abs(back - points).max() <= 1e-4


def test_corners_of_the_area_meet_whatever_the_scale() -> None:
    geometry = ImageGeometry.from_resize((480, 640), (768, 1024))
    assert geometry.scale == (1.6, 1.6)
    assert np.allclose(geometry.to_original(np.array([[-0.5, -0.5], [1023.5, 767.5]])), [[-0.5, -0.5], [639.5, 479.5]])
    # the first pixel's centre: (0 + 0.5) / 1.6 - 0.5
    assert np.allclose(geometry.to_original(np.zeros((1, 2))), [[-0.1875, -0.1875]])


def test_x_and_y_have_their_own_scale_and_offset() -> None:
    geometry = ImageGeometry.from_resize((100, 400), (200, 100), (250, 120), offset=(30, 10))
    assert geometry.scale == (2.0, 0.25)
    # x: (0 + .5) * .25 - .5 + 10, y: (0 + .5) * 2 - .5 + 30
    assert np.allclose(geometry.to_network(np.zeros((1, 2))), [[9.625, 30.5]])


def test_half_centres_shift_by_half_a_network_pixel() -> None:
    integer = ImageGeometry.from_resize((100, 100), (50, 50))
    half = ImageGeometry.from_resize((100, 100), (50, 50), pixel_centre="half")
    points = np.array([[3.0, 7.0]])
    assert np.allclose(half.to_original(points + 0.5), integer.to_original(points))
    # RoMa's (0, 0) is the outer corner of the image
    assert np.allclose(half.to_original(np.zeros((1, 2))), [[-0.5, -0.5]])


def test_agrees_with_where_opencv_puts_a_pixel() -> None:
    """A blob in the original lands where `cv2.resize` moves it, to a twentieth of a pixel."""
    original = np.zeros((200, 300), np.float32)
    cv2.circle(original, (120, 60), 9, 1.0, -1)
    for size in ((400, 450), (123, 211)):
        resized = cv2.resize(original, size[::-1], interpolation=cv2.INTER_AREA if size[0] < 200 else cv2.INTER_LINEAR)
        y, x = np.mgrid[: size[0], : size[1]]
        centroid = np.array([[(x * resized).sum(), (y * resized).sum()]]) / resized.sum()
        geometry = ImageGeometry.from_resize((200, 300), size)
        assert np.abs(geometry.to_original(centroid) - [[120, 60]]).max() < 0.05


def test_inside() -> None:
    geometry = ImageGeometry.from_resize((10, 20), (10, 20), (32, 32))
    points = np.array([[-0.5, 0], [19.5, 9.5], [19.6, 5], [5, 9.6], [np.nan, 0]])
    assert geometry.inside_original(points).tolist() == [True, True, False, False, False]


def test_no_points() -> None:
    geometry = ImageGeometry.from_resize((10, 20), (5, 10))
    assert geometry.to_original(np.zeros((0, 2), np.float32)).shape == (0, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"valid_size": (0, 5)},
        {"valid_size": (40, 5)},
        {"scale": (0.0, 1.0)},
        {"offset": (30.0, 0.0)},
        {"offset": (-1.0, 0.0)},
        {"pixel_centre": "corner"},
    ],
)
def test_contradictions_are_refused(options: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "original_size": (8, 8),
        "network_size": (32, 32),
        "valid_size": (8, 8),
        "scale": (1.0, 1.0),
    }
    ImageGeometry(**good)
    with pytest.raises(UsageError):
        ImageGeometry(**{**good, **options})


def test_points_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(2, 5\)"):
        ImageGeometry.from_resize((10, 20), (5, 10)).to_original(np.zeros((2, 5)))
