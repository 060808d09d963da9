"""Networks whose random weights really detect and really match, pairs for them, and photographs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.color
import skimage.data
import torch
from torch import Tensor, nn

from matchrt_lightglue.networks import LightGlue, SuperPoint
from matchrt_lightglue.random_weights import fill_extractor, fill_matcher

Pair = tuple[Tensor, ...]
"""Arguments of `LightGlue.forward`."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def published_keys() -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the published files' tensors."""
    return json.loads((Path(__file__).parent / "data" / "published_keys.json").read_text())


@pytest.fixture(scope="session")
def calibrate_matcher() -> Callable[[nn.Module], None]:
    """Sets weights so that alike descriptors match with high scores and positions matter."""

    def calibrate(network: nn.Module) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            fill_matcher(network)

    return calibrate


@pytest.fixture(scope="session")
def matcher(calibrate_matcher: Callable[[nn.Module], None]) -> LightGlue:
    """A full-size LightGlue with calibrated weights."""
    network = LightGlue().eval()
    calibrate_matcher(network)
    return network.requires_grad_(False)


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., Pair]:
    """Builds pairs of which 70 % of the second image's descriptors are the first's with a little noise."""

    def make(
        count0: int,
        count1: int,
        *,
        batch: int = 1,
        dim: int = 256,
        size0: Pair2 = (480, 640),
        size1: Pair2 = (777, 333),
    ) -> Pair:
        generator = torch.Generator().manual_seed(count0 + 7 * count1)

        def side(count: int, size: Pair2) -> list[Tensor]:
            extent = torch.tensor([size[1] - 1, size[0] - 1])
            return [
                torch.rand(batch, count, 2, generator=generator) * extent,
                nn.functional.normalize(torch.randn(batch, count, dim, generator=generator), dim=-1),
                torch.full((batch,), count, dtype=torch.int32),
                torch.tensor([size] * batch, dtype=torch.float32),
            ]

        image0, image1 = side(count0, size0), side(count1, size1)
        common = int(0.7 * min(count0, count1))
        shuffled = torch.randperm(count1, generator=generator)[:common]
        noise = 0.02 * torch.randn(batch, common, dim, generator=generator)
        image1[1][:, shuffled] = nn.functional.normalize(image0[1][:, :common] + noise, dim=-1)
        return (*image0, *image1)

    return make


Pair2 = tuple[int, int]


@pytest.fixture(scope="session")
def extractor() -> Callable[..., SuperPoint]:
    """Builds a SuperPoint whose random weights give sparse, peaked detections."""

    def build(**settings: object) -> SuperPoint:
        network = SuperPoint(**settings).eval()  # type: ignore[arg-type]
        calibrate_extractor(network)
        return network.requires_grad_(False)

    return build


def calibrate_extractor(network: SuperPoint) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        fill_extractor(network)


@pytest.fixture(scope="session")
def photo() -> Callable[..., Tensor]:
    """A photograph, cut to (height, width), as (1, 1, height, width) float32 in [0, 1]."""

    def load(name: str, height: int, width: int) -> Tensor:
        image = getattr(skimage.data, name)()
        grey = skimage.color.rgb2gray(image) if image.ndim == 3 else image / 255.0
        assert grey.shape[0] >= height
        assert grey.shape[1] >= width
        return torch.from_numpy(np.ascontiguousarray(grey[:height, :width], dtype=np.float32))[None, None]

    return load
