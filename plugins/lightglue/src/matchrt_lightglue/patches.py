"""Weight-space rewrites that make SuperPoint's and LightGlue's graphs small; applied for export, taken back afterwards.

Published weights keep query, key and value interleaved, rotate neighbouring pairs and scale after the projection.
Reordering rows once gives whole blocks, half-split rotation and the scale inside the weights: Slice, Unsqueeze and
Concat chains disappear, and attention has the form that TensorRT fuses (scaled before the product). The projection after attention is
one with the first of the update's, since nothing stands between them: two products become one, 18 times a pair.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matchrt.patches import Patch, replaced_modules
from matchrt_lightglue.networks.attention import (
    CrossBlock,
    Points,
    SelfBlock,
    attention,
    split_heads,
    update,
)
from matchrt_lightglue.networks.superpoint import FirstConv

STEP = 2.0**-11
"""Grey values up to 1 in these steps are exact in float16."""

OUTSIDE = -1.0e4
"""Far below what the first convolution gives for grey values, so that the ReLU leaves 0; float16 holds it."""


class GreyParts(nn.Module):
    """Four maps of one: grey values in steps of 2^-11, their remainder, the steps again, and where the padding is.

    Each is exact in float16 or as exact as float32 was, so the convolution over them loses nothing in half precision. A module, so
    that its nodes have a name for precision rules.
    """

    def forward(self, image: Tensor, inside: Tensor) -> Tensor:
        """`image` and `inside` (B, 1, H, W) to (B, 4, H, W)."""
        grey = image * inside
        steps = torch.floor(grey * (1.0 / STEP)) * STEP
        return torch.cat((steps, grey - steps, steps, 1.0 - inside), dim=1)


class PackedFirstConv(nn.Module):
    """`FirstConv` as one convolution of four input channels (TensorRT pads one to eight anyway), without a product with the mask.

    The weights for the second copy of the steps are what float16 cuts off the first's: products are exact in half precision, as
    sums are accumulated in float32. The padding's own channel has one tap, which the ReLU turns to zero.
    """

    def __init__(self, first: FirstConv) -> None:
        super().__init__()
        self.parts = GreyParts()
        weight = first.weight.detach()
        rounded = weight.to(torch.float16).to(weight.dtype)
        outside = torch.zeros_like(weight)
        outside[:, :, 1, 1] = OUTSIDE
        self.conv = nn.Conv2d(4, weight.shape[0], kernel_size=3, padding=1, device="meta")
        self.conv.weight = nn.Parameter(torch.cat((rounded, weight, weight - rounded, outside), 1), requires_grad=False)
        assert first.bias is not None
        self.conv.bias = nn.Parameter(first.bias.detach().clone(), requires_grad=False)

    def forward(self, image: Tensor, inside: Tensor | None = None) -> Tensor:
        """As `FirstConv.forward`."""
        return F.relu(self.conv(self.parts(image, torch.ones_like(image) if inside is None else inside)))


def first_layer() -> Patch:
    """Patch that replaces the first convolution of a `SuperPoint` whose padding is masked."""

    def replace(module: nn.Module) -> nn.Module | None:
        return PackedFirstConv(module) if isinstance(module, FirstConv) else None

    return Patch(
        name="first-layer",
        reason="in half precision the first layer's sums moved matches, and in float32 it cost a fifth of the extractor's time",
        exact=True,
        tolerance=1e-5,
        apply=lambda network: replaced_modules(network, replace),
    )


class PackedSelfBlock(nn.Module):
    """`SelfBlock` with one projection ordered [query, key, value] and half-split rotation."""

    def __init__(self, block: SelfBlock) -> None:
        super().__init__()
        self.heads = block.heads
        dim = block.out_proj.in_features
        order, scale = _packed_rows(dim, block.heads)
        self.qkv = _linear(block.Wqkv.weight[order] * scale[:, None], block.Wqkv.bias[order] * scale)
        self.ffn = _merged(block.out_proj, block.ffn)

    def forward(self, points: Points) -> Tensor:
        """Updated features (B, N, dim)."""
        batch, count, dim = points.x.shape
        qk, v = self.qkv(points.x).split([2 * dim, dim], dim=-1)
        # Query and key rotate together: 2·heads vectors of d, first half against second half.
        qk = qk.reshape(batch, count, 2 * self.heads, dim // self.heads)
        a, b = qk.chunk(2, dim=-1)
        cos, sin = points.cos.unsqueeze(2), points.sin.unsqueeze(2)
        qk = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).transpose(1, 2)
        q, k = qk.chunk(2, dim=1)
        message = attention(q, k, split_heads(v, self.heads), points.bias)
        return update(self.ffn, points.x, message)


class PackedCrossBlock(nn.Module):
    """`CrossBlock` with one projection ordered [query-key, value]; both factors of a product carry half of the scale's exponent."""

    def __init__(self, block: CrossBlock) -> None:
        super().__init__()
        self.heads = block.heads
        scale = (block.to_out.in_features // block.heads) ** -0.25
        weights = (block.to_qk.weight * scale, block.to_v.weight)
        self.qkv = _linear(torch.cat(weights), torch.cat((block.to_qk.bias * scale, block.to_v.bias)))
        self.ffn = _merged(block.to_out, block.ffn)

    def forward(self, points0: Points, points1: Points) -> tuple[Tensor, Tensor]:
        """Updated features (B, N0, dim) and (B, N1, dim)."""
        own, other = self.qkv(points0.x), self.qkv(points1.x)
        return self._attend(points0.x, own, other, points1.bias), self._attend(points1.x, other, own, points0.bias)

    def forward_stacked(self, points: Points, partner: Tensor, partner_bias: Tensor) -> Tensor:
        """Updated features (2B, N, dim) for images 0 stacked on images 1; `partner` and `partner_bias` as in `State`."""
        own = self.qkv(points.x)
        return self._attend(points.x, own, own.index_select(0, partner), partner_bias)

    def _attend(self, x: Tensor, own: Tensor, other: Tensor, bias: Tensor) -> Tensor:
        """Update `x` from the projection of the other image, (B, M, 2·dim)."""
        dim = x.shape[-1]
        query = split_heads(own[..., :dim], self.heads)
        key, value = (split_heads(part, self.heads) for part in other.split(dim, dim=-1))
        return update(self.ffn, x, attention(query, key, value, bias))


def packed_attention() -> Patch:
    """Patch that replaces every attention block of a `LightGlue` by its packed form.

    The packed blocks hold copies: weights loaded while the patch is in force do not reach them.
    """

    def replace(module: nn.Module) -> nn.Module | None:
        if isinstance(module, SelfBlock):
            return PackedSelfBlock(module)
        return PackedCrossBlock(module) if isinstance(module, CrossBlock) else None

    return Patch(
        name="packed-attention",
        reason="interleaved query, key, value and rotary pairs cost Slice, Unsqueeze and Concat chains in every layer",
        exact=True,
        tolerance=1e-5,
        apply=lambda network: replaced_modules(network, replace),
    )


def _packed_rows(dim: int, heads: int) -> tuple[Tensor, Tensor]:
    """Order and scale of rows, from (head, d, {q, k, v}) to ({q, k, v}, head, d), even before odd in q and k."""
    rows = torch.arange(3 * dim).reshape(heads, dim // heads, 3).permute(2, 0, 1)  # (3, heads, d)
    halves = torch.cat((rows[..., 0::2], rows[..., 1::2]), dim=-1)
    scale = torch.ones(3, dim)
    scale[0] = (dim // heads) ** -0.5
    return torch.cat((halves[:2], rows[2:])).flatten(), scale.flatten()


def _merged(projection: nn.Linear, ffn: nn.Sequential) -> nn.Sequential:
    """The update for a message before `projection`: `ffn` with it in the half of its first weights that reads the message."""
    first = ffn[0]
    assert isinstance(first, nn.Linear)
    own, read = first.weight.double().split(projection.out_features, dim=1)
    weight = torch.cat((own, read @ projection.weight.double()), dim=1)
    bias = first.bias.double() + read @ projection.bias.double()
    return nn.Sequential(_linear(weight.to(first.weight.dtype), bias.to(first.weight.dtype)), *ffn[1:])


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear
