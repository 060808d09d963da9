"""LightGlue's attention: points with rotary positions, and the blocks that update them within an image and across two."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

KEY_BIAS = -3.0e4
"""Added to the attention logits of padded points: far below any logit, and still finite in float16."""


class Points(NamedTuple):
    """Tokens of one image (or of both, stacked on the batch)."""

    x: Tensor
    """(B, N, dim) token features."""
    cos: Tensor
    """(B, N, head_dim / 2) cosine of the rotation angles."""
    sin: Tensor
    """(B, N, head_dim / 2) sine of the rotation angles."""
    bias: Tensor
    """(B, 1, 1, N) added to attention logits: 0 for keypoints, `KEY_BIAS` for filler."""


class PositionalEncoding(nn.Module):
    """Learned Fourier features of a position, as the angles of a rotary encoding (LightGlue, equation 5)."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.Wr = nn.Linear(2, head_dim // 2, bias=False)
        nn.init.normal_(self.Wr.weight, mean=0, std=1.0)

    def forward(self, keypoints: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (B, N, head_dim / 2) for normalised keypoints (B, N, 2)."""
        angle = self.Wr(keypoints)
        return torch.cos(angle), torch.sin(angle)


class SelfBlock(nn.Module):
    """Multi-head self-attention with rotary positions, and its feed-forward update.

    Rows of `Wqkv` are ordered (head, head dim, {query, key, value}); rotary pairs are neighbours (0, 1), (2, 3), …
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.Wqkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim)

    def forward(self, points: Points) -> Tensor:
        """Updated features (B, N, dim)."""
        batch, count, dim = points.x.shape
        q, k, v = self.Wqkv(points.x).reshape(batch, count, self.heads, dim // self.heads, 3).unbind(-1)
        cos, sin = points.cos.unsqueeze(2), points.sin.unsqueeze(2)
        q, k = rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
        q = q * (dim // self.heads) ** -0.5
        message = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), points.bias)
        return update(self.ffn, points.x, self.out_proj(message))


class CrossBlock(nn.Module):
    """Attention between two images with one projection for queries and keys, and its feed-forward update."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qk = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query (scaled), key and value, each (B, heads, N, head dim)."""
        qk, v = split_heads(self.to_qk(x), self.heads), split_heads(self.to_v(x), self.heads)
        return qk * (x.shape[-1] // self.heads) ** -0.5, qk, v

    def forward(self, points0: Points, points1: Points) -> tuple[Tensor, Tensor]:
        """Updated features (B, N0, dim) and (B, N1, dim)."""
        (q0, k0, v0), (q1, k1, v1) = self.project(points0.x), self.project(points1.x)
        message0 = self.to_out(attention(q0, k1, v1, points1.bias))
        message1 = self.to_out(attention(q1, k0, v0, points0.bias))
        return update(self.ffn, points0.x, message0), update(self.ffn, points1.x, message1)

    def forward_stacked(self, points: Points, partner: Tensor, partner_bias: Tensor) -> Tensor:
        """Updated features (2B, N, dim) for images 0 stacked on images 1; `partner` and `partner_bias` as in `State`."""
        q, k, v = self.project(points.x)
        k, v = k.index_select(0, partner), v.index_select(0, partner)
        return update(self.ffn, points.x, self.to_out(attention(q, k, v, partner_bias)))


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of the last axis of `x` (…, d) by angles given as `cos` and `sin` (…, d / 2)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of `q` (B, heads, N, d), already scaled, over `k` and `v` (B, heads, M, d): (B, N, heads·d).

    Plain products in four dimensions with the scale applied before: the form that TensorRT fuses.
    """
    weights = (q @ k.transpose(2, 3) + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def update(ffn: nn.Sequential, x: Tensor, message: Tensor) -> Tensor:
    """Residual feed-forward update of `x` (B, N, dim) by `message` (B, N, dim)."""
    change: Tensor = ffn(torch.cat((x, message), dim=-1))
    return x + change


def feed_forward(dim: int) -> nn.Sequential:
    """The update's network on features and message, 2·dim wide."""
    return nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.LayerNorm(2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads·d) to (B, heads, N, d)."""
    batch, count, dim = x.shape
    return x.reshape(batch, count, heads, dim // heads).transpose(1, 2)


def valid_points(count: Tensor, total: int) -> Tensor:
    """(B, total) bool: the first `count` (B,) entries."""
    index = torch.arange(total, dtype=torch.int32, device=count.device)
    return index.unsqueeze(0) < count.to(torch.int32).unsqueeze(1)


def key_bias(count: Tensor, total: int, dtype: torch.dtype) -> Tensor:
    """(B, 1, 1, total): 0 for the first `count` keys, `KEY_BIAS` for the rest."""
    return ((~valid_points(count, total)).to(dtype) * KEY_BIAS)[:, None, None, :]
