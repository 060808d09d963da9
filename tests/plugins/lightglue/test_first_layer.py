"""The first convolution in the form that is exported: the same function, and exact where its products are rounded to half."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from matchrt.patches import apply_patches
from matchrt_lightglue.networks.superpoint import FirstConv, SuperPoint
from matchrt_lightglue.patches import PackedFirstConv, first_layer


@pytest.fixture
def image() -> Tensor:
    """Two grey pictures, (2, 1, 40, 56), one of them padded."""
    return torch.rand(2, 1, 40, 56, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def inside() -> Tensor:
    mask = torch.ones(2, 1, 40, 56)
    mask[1, :, 32:] = 0.0
    mask[1, :, :, 41:] = 0.0
    return mask


def test_the_exported_form_is_the_same_function(image: Tensor, inside: Tensor) -> None:
    torch.manual_seed(0)
    first = FirstConv(16)
    with torch.no_grad():
        expected, found = first(image, inside), PackedFirstConv(first)(image, inside)
    assert (found - expected).abs().max() < 1e-6
    assert found[1, :, 32:].abs().max() == 0
    assert found[1, :, :, 41:].abs().max() == 0
    assert (found[1, :, :32, :41] > 0).any()
    with torch.no_grad():
        assert (PackedFirstConv(first)(image) - first(image)).abs().max() < 1e-6


def test_a_whole_extractor_with_the_patch_gives_the_same_and_gets_its_layer_back(image: Tensor) -> None:
    torch.manual_seed(0)
    network = SuperPoint(channels=(8, 8, 8, 8), head_dim=16, descriptor_dim=16, max_keypoints=8).eval()
    size = torch.tensor([[40, 56], [32, 41]], dtype=torch.int32)
    with torch.no_grad():
        expected = network.forward_dense(image, size)
        with apply_patches(network, [first_layer()]):
            assert isinstance(network.conv1a, PackedFirstConv)
            found = network.forward_dense(image, size)
    assert isinstance(network.conv1a, FirstConv)
    for a, b in zip(expected, found, strict=True):
        assert (a - b).abs().max() < 1e-5


def test_products_rounded_to_half_lose_nothing(image: Tensor, inside: Tensor) -> None:
    """Inputs and weights rounded to float16, sums in float64, as tensor cores with wide accumulators have it."""
    torch.manual_seed(0)
    first = FirstConv(16)
    packed = PackedFirstConv(first).double()
    with torch.no_grad():
        exact = first.double()(image.double(), inside.double())
        plain = FirstConv(16).double()
        plain.weight.copy_(first.weight.half())
        plain.bias.copy_(first.bias)
        rounded = plain(image.half().double(), inside.double())
        packed.conv.weight.copy_(packed.conv.weight.half())
        parts = packed.parts(image.double(), inside.double())
        assert torch.equal(parts[:, 0], parts[:, 0].half().double())
        found = torch.relu(packed.conv(parts.half().double()))
    split_error, plain_error = (found - exact).abs().max(), (rounded - exact).abs().max()
    assert plain_error > 1e-4
    assert split_error < 2e-7
    assert plain_error > 1000 * split_error
