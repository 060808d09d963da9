"""Pre-norm transformer blocks, with the names that DINOv2's file and RoMa's match decoder share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection (rows q, k, v).

    The scale goes on q before the product and all tensors stay four-dimensional: the form that TensorRT fuses.
    """

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = float((dim // heads) ** -0.5)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, N, D)` to `(B, N, D)`."""
        batch, count, dim = tokens.shape
        packed = self.qkv(tokens)
        query, key, value = (
            packed[..., start : start + dim].reshape(batch, count, self.heads, dim // self.heads).transpose(1, 2)
            for start in (0, dim, 2 * dim)
        )
        weights = ((query * self.scale) @ key.transpose(-1, -2)).softmax(dim=-1)
        out: Tensor = self.proj((weights @ value).transpose(1, 2).reshape(batch, count, dim))
        return out


class Mlp(nn.Module):
    """Two linear layers with the exact (error-function) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, N, D)` to `(B, N, D)`."""
        out: Tensor = self.fc2(nn.functional.gelu(self.fc1(tokens)))
        return out


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al., CaiT)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, N, D)` to `(B, N, D)`."""
        return tokens * self.gamma


class Block(nn.Module):
    """Attention, then MLP, each after a LayerNorm and added to its input.

    DINOv2: `qkv_bias`, `layer_scale`, eps 1e-6. RoMa's match decoder: neither, eps 1e-5.
    """

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool, layer_scale: bool, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qkv_bias=qkv_bias)
        self.ls1: nn.Module = LayerScale(dim) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2: nn.Module = LayerScale(dim) if layer_scale else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, N, D)` to `(B, N, D)`."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        out: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return out


class MatchDecoder(nn.Module):
    """RoMa's match decoder: tokens of (GP mean, feature) to logits over anchors and one certainty logit."""

    def __init__(self, dim: int, depth: int, heads: int, anchors: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(Block(dim, heads, qkv_bias=False, layer_scale=False, eps=1e-5) for _ in range(depth))
        )
        self.to_out = nn.Linear(dim, anchors * anchors + 1)

    def forward(self, mean: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        """GP mean `(B, G, h, w)`, feature `(B, C, h, w)` to anchor logits `(B, h*w, A*A)`, certainty `(B, 1, h, w)`."""
        batch, _, height, width = mean.shape
        tokens = torch.cat((mean, feature), dim=1).flatten(2).transpose(1, 2)
        out = self.to_out(self.blocks(tokens))
        return out[..., :-1], out[..., -1:].reshape(batch, 1, height, width)
