"""Both recipes against the libraries that upstream uses: torch's interpolation, torchvision's transforms, OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from romatch.utils import get_tuple_transform_ops

from matchrt.errors import ImageError, UsageError
from matchrt_roma.preprocess import parity_image, preprocess_pair
from matchrt_roma.settings import RomaSettings


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("source", [(97, 203), (300, 150), (56, 56)])
def test_matchanything_stretch_is_torchs(source: tuple[int, int]) -> None:
    settings = RomaSettings(size=(56, 84), upsample_size=(72, 136))
    images = photo(*source), photo(*source, seed=1)
    tensors = preprocess_pair(*images, settings)
    for name, size in (("images", (56, 84)), ("images_high", (72, 136))):
        assert tensors[name].dtype == np.float32
        for index, image in enumerate(images):
            scaled = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
            expected = torch.nn.functional.interpolate(scaled, size=size, mode="bilinear", align_corners=False)
            assert np.abs(tensors[name][0, index] - expected[0].numpy()).max() <= 2e-5
    assert tensors["images"].min() >= 0
    assert tensors["images"].max() <= 1


def test_upstream_recipe_is_upstreams() -> None:
    settings = RomaSettings(recipe="upstream", size=(56, 84), upsample_size=None)
    images = photo(97, 203), photo(61, 90, seed=1)
    tensors = preprocess_pair(*images, settings)
    assert list(tensors) == ["images"]
    transform = get_tuple_transform_ops(resize=(56, 84), normalize=True)
    expected = transform(tuple(Image.fromarray(image) for image in images))
    for index in (0, 1):
        assert np.abs(tensors["images"][0, index] - expected[index].numpy()).max() <= 1e-6


def test_variants_without_upsampling_make_one_tensor() -> None:
    for variant in ("coarse", "encoder-gp"):
        assert list(preprocess_pair(photo(20, 20), photo(20, 20), RomaSettings(variant=variant, size=(28, 28)))) == [
            "images"
        ]


def test_parity_squeezes_as_the_demo() -> None:
    image = photo(1200, 900)
    once = cv2.resize(image, (624, 832), interpolation=cv2.INTER_AREA)
    expected = cv2.resize(once, (640, 480), interpolation=cv2.INTER_AREA)
    assert np.array_equal(parity_image(image), expected)
    assert parity_image(photo(480, 640)).shape == (480, 640, 3)
    small = RomaSettings(size=(28, 28), upsample_size=None)
    assert not np.array_equal(
        preprocess_pair(image, image, small, parity=True)["images"], preprocess_pair(image, image, small)["images"]
    )


def test_gray_is_repeated_and_other_images_refused() -> None:
    settings = RomaSettings(size=(28, 28), upsample_size=None)
    gray = photo(40, 50)[..., 0]
    tensor = preprocess_pair(gray, gray[..., None], settings)["images"]
    assert np.array_equal(tensor[0, 0, 0], tensor[0, 0, 2])
    assert np.array_equal(tensor[0, 0], tensor[0, 1])
    for bad in (np.zeros((4, 4), np.uint16), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ImageError):
            preprocess_pair(bad, gray, settings)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"size": (832, 832)}, "multiple of 14"),
        ({"size": (0, 560)}, "multiple of 14"),
        ({"upsample_size": (860, 864)}, "multiple of 8"),
        ({"variant": "huge"}, "variant"),
        ({"recipe": "mine"}, "recipe"),
        ({"leaf": 1}, "leaf"),
    ],
)
def test_settings_refuse(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        RomaSettings(**arguments)  # type: ignore[arg-type]
    assert error.value.hint
    if arguments.get("size") == (832, 832):
        assert "826x826" in error.value.hint
