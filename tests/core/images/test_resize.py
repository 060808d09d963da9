"""Each resize against the library whose rule it states: kornia, torch, torchvision, Pillow, OpenCV."""

from __future__ import annotations

from typing import Any

import cv2
import kornia
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from skimage import data as photographs
from torchvision.transforms import InterpolationMode, Resize

from matchrt import images
from matchrt.errors import UsageError

Array = NDArray[Any]
RNG = np.random.default_rng(0)
SIZES = [
    ((480, 640), (768, 1024)),
    ((333, 777), (438, 1024)),
    ((700, 1001), (211, 333)),
    ((400, 300), (400, 123)),
    ((400, 300), (90, 700)),
    ((37, 53), (5, 3)),
    ((64, 64), (64, 64)),
    ((2, 3), (1, 1)),
    ((1, 1), (7, 5)),
    ((1, 50), (1, 7)),
    ((50, 1), (9, 3)),
]


def kornia_resize(pixels: Array, size: tuple[int, int]) -> Array:
    tensor = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(pixels))).permute(2, 0, 1)[None]
    out = kornia.geometry.transform.resize(tensor, size, "bilinear", align_corners=None, side="long", antialias=True)
    return out[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("size", "out"), SIZES)
def test_antialiased_is_kornias(size: tuple[int, int], out: tuple[int, int]) -> None:
    colour = RNG.random((*size, 3), dtype=np.float32)
    result = images.resize_antialiased(colour, out)
    assert result.shape == (*out, 3)
    assert result.dtype == np.float32
    assert np.abs(result - kornia_resize(colour, out)).max() <= 1e-5
    grey = images.resize_antialiased(colour[..., 0], out)
    assert np.abs(grey - kornia_resize(colour[..., 0], out)[..., 0]).max() <= 1e-5


@pytest.mark.parametrize("name", ["astronaut", "coffee", "camera", "chelsea"])
def test_antialiased_on_photographs_both_ways(name: str) -> None:
    photograph = getattr(photographs, name)().astype(np.float32) / 255
    for long_side in (1024, 640, 200):
        size = images.size_for_long_side(photograph.shape[:2], long_side)
        difference = images.resize_antialiased(photograph, size) - kornia_resize(photograph, size).reshape(
            *size, *photograph.shape[2:]
        )
        assert np.abs(difference).max() <= 1e-5


def test_any_number_of_channels() -> None:
    pixels = RNG.random((40, 60, 7), dtype=np.float32)
    assert np.abs(images.resize_antialiased(pixels, (17, 31)) - kornia_resize(pixels, (17, 31))).max() <= 1e-5


def test_grey_may_be_taken_before_the_resize() -> None:
    """Both are linear, so a third of the work gives what kornia's order, resize and then grey, gives."""
    photograph = photographs.astronaut().astype(np.float32) / 255
    before = images.resize_antialiased(images.to_grey_float(photograph), (333, 400))
    after = images.to_grey_float(images.resize_antialiased(photograph, (333, 400)))
    assert np.abs(before - after).max() <= 5e-6


def test_the_gaussian_matters() -> None:
    noise = RNG.random((300, 400), dtype=np.float32)
    plain = images.resize_bilinear(noise, (100, 133))
    assert np.abs(plain - images.resize_antialiased(noise, (100, 133))).max() > 0.2


@pytest.mark.parametrize("_", range(30))
def test_long_side_is_kornias(_: int) -> None:
    height, width, side = (int(v) for v in RNG.integers(30, 900, 3))
    expected = kornia.geometry.transform.resize(torch.zeros(1, 1, height, width), side, side="long").shape[-2:]
    assert images.size_for_long_side((height, width), side) == tuple(expected)


def test_long_side_known_values() -> None:
    assert images.size_for_long_side((480, 640), 1024) == (768, 1024)
    assert images.size_for_long_side((333, 777), 1024) == (438, 1024)
    assert images.size_for_long_side((777, 333), 1024) == (1024, 438)
    with pytest.raises(UsageError, match="5000x1"):
        images.size_for_long_side((5000, 1), 1024)


@pytest.mark.parametrize(("size", "out"), SIZES)
def test_bilinear_is_torchs(size: tuple[int, int], out: tuple[int, int]) -> None:
    colour = RNG.random((*size, 3), dtype=np.float32)
    tensor = torch.from_numpy(colour).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(tensor, out, mode="bilinear", align_corners=False)
    assert np.abs(images.resize_bilinear(colour, out) - expected[0].permute(1, 2, 0).numpy()).max() <= 5e-6


def test_bilinear_is_torchvisions_without_antialias() -> None:
    photograph = photographs.coffee().astype(np.float32) / 255
    resize = Resize((560, 560), InterpolationMode.BILINEAR, antialias=False)
    expected = resize(torch.from_numpy(photograph).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert np.abs(images.resize_bilinear(photograph, (560, 560)) - expected).max() <= 5e-6


@pytest.mark.parametrize("out", [(560, 560), (864, 864), (100, 77), (1, 1)])
def test_pil_bicubic_is_torchvisions(out: tuple[int, int]) -> None:
    photograph = photographs.coffee()
    expected = np.array(Resize(out, InterpolationMode.BICUBIC)(PILImage.fromarray(photograph)))
    assert np.array_equal(images.resize_pil_bicubic(photograph, out), expected)


def test_pil_lanczos() -> None:
    grey = photographs.camera()
    expected = np.array(PILImage.fromarray(grey).resize((480, 416), PILImage.LANCZOS))
    assert np.array_equal(images.resize_pil_lanczos(grey, (416, 480)), expected)
    assert np.array_equal(images.resize_pil_lanczos(grey, grey.shape), grey)
    with pytest.raises(UsageError, match="float32"):
        images.resize_pil_lanczos(grey.astype(np.float32), (4, 4))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_area_shrinks_and_falls_back_to_linear(dtype: type) -> None:
    photograph = photographs.coffee().astype(dtype)
    area = images.resize_area(photograph, (200, 300))
    assert np.array_equal(area, cv2.resize(photograph, (300, 200), interpolation=cv2.INTER_AREA))
    blocks = photograph.astype(np.float64).reshape(200, 2, 300, 2, 3).mean((1, 3))
    assert np.abs(area - blocks).max() <= (0.51 if dtype == np.uint8 else 1e-4), "area at a factor of two is the mean"
    for out in ((500, 300), (200, 700), (500, 700)):
        linear = cv2.resize(photograph, (out[1], out[0]), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(images.resize_area(photograph, out), linear)


def test_long_side_at_most() -> None:
    assert images.size_with_long_side_at_most((1063, 780), 832) == (832, 610)
    assert images.size_with_long_side_at_most((480, 640), 832) == (480, 640)
    assert images.size_with_long_side_at_most((5000, 1), 832) == (832, 1)


def test_floor_to_multiple_and_padding() -> None:
    assert images.floor_to_multiple((479, 640), 32) == (448, 640)
    assert images.floor_to_multiple((5, 40), 32) == (32, 32)
    pixels = RNG.random((3, 4, 3), dtype=np.float32)
    padded, valid = images.pad_bottom_right(pixels, (5, 5))
    assert valid == (3, 4)
    assert np.array_equal(padded[:3, :4], pixels)
    assert padded.sum() == pytest.approx(pixels.sum())
    assert padded.shape == (5, 5, 3)
    with pytest.raises(UsageError, match="larger"):
        images.pad_bottom_right(pixels, (2, 9))


def test_grey_float_is_kornias() -> None:
    pixels = RNG.random((50, 60, 3), dtype=np.float32)
    expected = kornia.color.rgb_to_grayscale(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0, 0].numpy()
    assert np.abs(images.to_grey_float(pixels) - expected).max() <= 1.2e-7
    assert images.to_grey_float(pixels[..., 0]).shape == (50, 60)
    assert images.to_grey_float(np.full((2, 2, 3), 255, np.uint8)).dtype == np.float32


def test_grey_pil_is_bit_exact_for_every_colour() -> None:
    step = np.arange(256, dtype=np.uint8)
    for red in range(256):
        plane = np.stack([np.full((256, 256), red, np.uint8), *np.meshgrid(step, step)], axis=-1)
        assert np.array_equal(images.to_grey_pil(plane), np.array(PILImage.fromarray(plane).convert("L")))


def test_wrong_input_is_named() -> None:
    with pytest.raises(UsageError, match="uint8"):
        images.resize_bilinear(np.zeros((4, 4), np.uint8), (2, 2))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="float64"):
        images.to_grey_pil(np.zeros((4, 4, 3)))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"\(4, 4, 2\)"):
        images.to_grey_float(np.zeros((4, 4, 2)))
    with pytest.raises(UsageError, match="at least 1"):
        images.resize_area(np.zeros((4, 4), np.uint8), (0, 2))
