"""Preprocessing against kornia's functions, which the published extractor calls."""

from __future__ import annotations

import kornia
import numpy as np
import pytest
import torch
from skimage import data

from matchrt.images.read import read_image
from matchrt.model import Settings
from matchrt.settings import resolve
from matchrt_lightglue.plugin import MATCHER_SPEC
from matchrt_lightglue.preprocess import preprocess_pair


def settings(**chosen: object) -> Settings:
    return resolve(MATCHER_SPEC.settings, ("flag", chosen), environment={})


def published(pixels: np.ndarray, long_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Image to network input and scale (y, x): to float, resize, then grey (cvg/LightGlue, utils.py and superpoint.py)."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    height, width = image.shape[-2:]
    resized = kornia.geometry.transform.resize(image, long_side, side="long", antialias=True, align_corners=None)
    grey = kornia.color.rgb_to_grayscale(resized)
    scale = np.array(grey.shape[-2:]) / np.array([height, width])
    return grey.numpy(), scale


@pytest.mark.parametrize("long_side", [1024, 512, 333])
@pytest.mark.parametrize("crop", [(512, 512), (333, 477), (101, 300)])
def test_the_input_is_that_of_the_published_chain(crop: tuple[int, int], long_side: int) -> None:
    pixels = np.ascontiguousarray(data.astronaut()[: crop[0], : crop[1]])
    expected, scale = published(pixels, long_side)
    tensors, geometry = preprocess_pair((read_image(pixels), read_image(pixels)), settings(long_side=long_side))
    height, width = expected.shape[-2:]
    assert tensors["valid_size0"].tolist() == [[height, width]]
    assert np.abs(tensors["image0"][:, :, :height, :width] - expected).max() < 1e-5
    assert not tensors["image0"][:, :, height:].any()
    assert not tensors["image0"][:, :, :, width:].any()
    assert all(n % 8 == 0 for n in tensors["image0"].shape[2:])
    assert np.allclose(tensors["scale0"], scale[None], rtol=1e-6)
    assert tensors["size0"].tolist() == [list(crop)]
    assert geometry[0].original_size == crop


def test_a_fixed_size_keeps_the_proportions() -> None:
    tall = read_image(np.ascontiguousarray(data.astronaut()[:, :200]))
    wide = read_image(np.ascontiguousarray(data.astronaut()[:100]))
    tensors, geometry = preprocess_pair((tall, wide), settings(size="240x320"))
    assert tensors["image0"].shape == tensors["image1"].shape == (1, 1, 240, 320)
    assert tensors["valid_size0"].tolist() == [[240, 94]]
    assert tensors["valid_size1"].tolist() == [[62, 320]]
    for g, scale in zip(geometry, (240 / 512, 320 / 512), strict=True):
        assert np.allclose(g.scale, scale, rtol=0.01)


def test_no_long_side_keeps_the_size() -> None:
    image = read_image(np.ascontiguousarray(data.astronaut()[:61, :77]))
    tensors, _ = preprocess_pair((image, image), settings(long_side=None))
    assert tensors["image0"].shape == (1, 1, 64, 80)
    assert tensors["scale0"].tolist() == [[1.0, 1.0]]
