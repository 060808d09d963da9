"""Each preprocessing recipe to the bit against a literal chain of the libraries it names; scaling back; bad images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image as PILImage

from matchrt.errors import ImageError, UsageError
from matchrt_eloftr.postprocess import finish_pair, to_original
from matchrt_eloftr.preprocess import Recipe, prepare, prepare_pair


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed)
    small = noise.integers(0, 256, (max(height // 9, 2), max(width // 9, 2), 3)).astype(np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


def matchanything(rgb: np.ndarray, *, squeeze: bool) -> tuple[np.ndarray, tuple[int, int]]:
    """The published chain, step by step: loader, tensor, matcher."""
    image = rgb.astype(np.float32)
    height, width = image.shape[:2]
    scale = 832 / max(width, height)
    if scale < 1.0:
        new = round(width * scale), round(height * scale)
        linear = width < new[0] or height < new[1]
        image = cv2.resize(image, new, interpolation=cv2.INTER_LINEAR if linear else cv2.INTER_AREA)
    if squeeze:
        grows = image.shape[1] < 640 or image.shape[0] < 480
        image = cv2.resize(image, (640, 480), interpolation=cv2.INTER_LINEAR if grows else cv2.INTER_AREA)
    tensor = torch.from_numpy(image.transpose(2, 0, 1) / 255.0).float()[None]
    if squeeze:
        tensor = TF.resize(tensor, [tensor.shape[2] // 32 * 32, tensor.shape[3] // 32 * 32], antialias=True)
    data = (tensor[0].permute(1, 2, 0) * 255).numpy().astype(np.uint8)
    grey = PILImage.fromarray(data).convert("L")
    w, h = grey.size
    grey = grey.resize((w // 32 * 32, h // 32 * 32), PILImage.LANCZOS)
    pixels = np.array(grey).astype(np.float32)
    side = max(pixels.shape)
    padded = np.zeros((side, side), np.float32)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    return padded / 255, (pixels.shape[0], pixels.shape[1])


@pytest.mark.parametrize("size", [(1063, 780), (480, 640), (300, 200), (673, 1013), (20, 20), (2000, 1500)])
def test_squeeze_is_matchanythings_default(size: tuple[int, int]) -> None:
    rgb = picture(*size)
    expected, valid = matchanything(rgb, squeeze=True)
    got = prepare(rgb, Recipe("squeeze", (640, 640)))
    assert got.valid == valid == (480, 640)
    assert got.tensor.shape == (1, 1, 640, 640)
    assert np.array_equal(got.tensor[0, 0], expected)


@pytest.mark.parametrize("size", [(1063, 780), (673, 1013), (832, 416), (2000, 1500)])
def test_aspect_is_matchanything_without_the_squeeze(size: tuple[int, int]) -> None:
    rgb = picture(*size, seed=1)
    expected, valid = matchanything(rgb, squeeze=False)
    got = prepare(rgb, Recipe("aspect", (832, 832)))
    assert got.valid == valid
    assert np.array_equal(got.tensor[0, 0], expected)


def test_grey_images_equal_their_colour_copies() -> None:
    grey = picture(500, 700)[..., 0]
    for recipe in (Recipe("squeeze", (640, 640)), Recipe("stretch", (480, 640))):
        assert np.array_equal(prepare(grey, recipe).tensor, prepare(np.repeat(grey[..., None], 3, 2), recipe).tensor)


def test_stretch_is_efficientloftrs_scannet_reader() -> None:
    rgb = picture(968, 1296)
    expected = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (640, 480))
    got = prepare(rgb, Recipe("stretch", (480, 640)))
    assert np.array_equal(got.tensor[0, 0], (torch.from_numpy(expected).float() / 255).numpy())
    assert got.valid == (480, 640)


@pytest.mark.parametrize("size", [(1063, 780), (300, 500)])
def test_long_side_is_efficientloftrs_megadepth_reader(size: tuple[int, int]) -> None:
    rgb = picture(*size)
    scale = 832 / max(size)
    w_new, h_new = (round(s * scale) // 32 * 32 for s in (size[1], size[0]))
    image = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (w_new, h_new))
    padded = np.zeros((832, 832), np.uint8)
    padded[:h_new, :w_new] = image
    got = prepare(rgb, Recipe("long-side", (832, 832)))
    assert got.valid == (h_new, w_new)
    assert np.array_equal(got.tensor[0, 0], (torch.from_numpy(padded).float() / 255).numpy())
    points = np.asarray([[100.0, 50.0]])
    assert np.allclose(to_original(points, got), points * [size[1] / w_new, size[0] / h_new])


def test_matchanything_scales_back_in_two_steps() -> None:
    got = prepare(picture(1063, 780), Recipe("aspect", (832, 832)))
    before, after = (832, 610), (832, 608)
    assert got.valid == after
    assert got.refit == (before[1] / after[1], 1.0)
    point = np.asarray([[304.5, 400.5]])
    expected = (point * [610 / 608, 1.0] + 0.5) * [780 / 610, 1063 / 832] - 0.5
    assert np.allclose(to_original(point, got), expected, atol=1e-4)
    assert prepare(picture(1063, 780), Recipe("squeeze", (640, 640))).refit == (1.0, 1.0)


def test_images_of_unequal_sizes_share_one_input_size() -> None:
    tensors, (first, second) = prepare_pair((picture(1063, 780), picture(400, 600)), Recipe("aspect", (832, 832)))
    assert tensors["image0"].shape == tensors["image1"].shape == (1, 1, 832, 832)
    assert tensors["valid0"].tolist() == [list(first.valid)] == [[832, 608]]
    assert tensors["valid1"].tolist() == [list(second.valid)] == [[384, 576]]
    assert tensors["valid0"].dtype == np.int32


def test_images_that_are_too_narrow_are_refused() -> None:
    for recipe in (Recipe("aspect", (832, 832)), Recipe("long-side", (832, 832))):
        with pytest.raises(ImageError, match=r"2000x40 pixels becomes .* below 32 pixels"):
            prepare(picture(2000, 40), recipe)
    with pytest.raises(ImageError, match="20x20"):
        prepare(picture(20, 20), Recipe("aspect", (832, 832)))


@pytest.mark.parametrize("shape", [(4, 4, 4), (8,), (0, 5, 3)])
def test_arrays_that_are_no_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError):
        prepare(np.zeros(shape, np.uint8), Recipe("stretch", (480, 640)))
    with pytest.raises(ImageError):
        prepare(np.zeros((64, 64), np.float32), Recipe("stretch", (480, 640)))  # type: ignore[arg-type]


def test_sizes_that_a_recipe_cannot_fill_are_refused() -> None:
    with pytest.raises(UsageError, match="480x650 is not a multiple of 32"):
        Recipe("stretch", (480, 650))
    with pytest.raises(UsageError, match="does not fit 448x640"):
        Recipe("squeeze", (448, 640))
    with pytest.raises(UsageError, match="unknown recipe 'crop'"):
        Recipe("crop", (480, 640))  # type: ignore[arg-type]


def outputs() -> dict[str, np.ndarray]:
    return {
        "keypoints0": np.asarray([[[4.5, 4.5], [100.5, 60.5], [20.5, 8.5], [0, 0]]], np.float32),
        "keypoints1": np.asarray([[[5.0, 4.0], [99.0, 61.0], [21.0, 9.0], [0, 0]]], np.float32),
        "scores": np.asarray([[0.9, 0.5, 0.3, 0.0]], np.float32),
        "cells": np.asarray([[[9, 3], [2, 5], [2, 4], [0, 0]]], np.int32),
        "count": np.asarray([3], np.int32),
        "candidates": np.asarray([3], np.int32),
    }


def test_matches_come_in_upstreams_order_above_the_threshold() -> None:
    _, geometry = prepare_pair((picture(480, 640), picture(480, 640)), Recipe("stretch", (480, 640)))
    found = finish_pair(outputs(), geometry, 0.2)
    assert found.cells.tolist() == [[2, 4], [2, 5], [9, 3]]
    assert found.scores.tolist() == pytest.approx([0.3, 0.5, 0.9])
    assert found.keypoints0[2].tolist() == [4.5, 4.5]
    assert not found.truncated
    empty = finish_pair(outputs(), geometry, 0.95)
    assert empty.keypoints0.shape == (0, 2)
    assert empty.scores.dtype == np.float32


def test_truncation_is_told() -> None:
    _, geometry = prepare_pair((picture(480, 640), picture(480, 640)), Recipe("stretch", (480, 640)))
    more = {**outputs(), "candidates": np.asarray([7], np.int32)}
    more["scores"] = np.asarray([[0.9, 0.5, 0.3, 0.25]], np.float32)
    assert finish_pair(more, geometry, 0.2).truncated
    assert not finish_pair(more, geometry, 0.28).truncated
    assert finish_pair(more, geometry, 0.28, per_row=2).truncated
    with pytest.raises(UsageError, match=r"below 0\.01, the score floor"):
        finish_pair(more, geometry, 0.001, score_floor=0.01)
