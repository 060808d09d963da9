"""DINOv2 (Oquab et al., 2023), ViT with LayerScale and no register tokens; parameter names as the official file."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from matchrt_roma.networks.transformer import Block
from matchrt_roma.settings import PATCH


class PatchEmbed(nn.Module):
    """Splits an image into patches of 14x14 pixels and projects each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, PATCH)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, 3, H, W)` to `(B, H/14 * W/14, D)`, row-major."""
        out: Tensor = self.proj(image).flatten(2).transpose(1, 2)
        return out


class DinoV2(nn.Module):
    """The encoder; `forward` returns the normalised patch tokens as a map.

    The published file's `mask_token` is of no inference path and left out; the weight rules drop it with that reason.
    """

    def __init__(self, dim: int, depth: int, heads: int, grid: int) -> None:
        super().__init__()
        self.native_grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid + 1, dim))
        self.patch_embed = PatchEmbed(dim)
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias=True, layer_scale=True, eps=1e-6) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    @torch.no_grad()
    def position(self, rows: int, columns: int) -> Tensor:
        """The positional embedding for a grid, `(1, 1 + rows*columns, D)`, class position first.

        As DINOv2's `interpolate_pos_encoding`: untouched at the native grid, otherwise bicubic in float32 by the scale
        (side + 0.1) / native side, given as a scale and not as a size, without antialiasing.
        """
        native = self.native_grid
        if (rows, columns) == (native, native):
            return self.pos_embed.detach().clone()
        table = self.pos_embed.detach().float()
        patches = table[:, 1:].reshape(1, native, native, -1).permute(0, 3, 1, 2)
        root = math.sqrt(native * native)
        resized = nn.functional.interpolate(
            patches, scale_factor=((rows + 0.1) / root, (columns + 0.1) / root), mode="bicubic"
        )
        return torch.cat((table[:, :1], resized.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)), dim=1)

    @torch.no_grad()
    def token_bias(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """What tokens start from: class token plus its position `(1, 1, D)`, patch positions `(1, rows*columns, D)`."""
        position = self.position(rows, columns)
        return self.cls_token.detach() + position[:, :1], position[:, 1:].clone()

    def forward(self, image: Tensor, first: Tensor, position: Tensor) -> Tensor:
        """Image `(B, 3, H, W)` and the two tensors of `token_bias` to the map `(B, D, H/14, W/14)`."""
        batch, _, height, width = image.shape
        patches = self.patch_embed(image) + position
        tokens = torch.cat((first.expand(batch, -1, -1), patches), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm(tokens)[:, 1:]
        return out.transpose(1, 2).reshape(batch, -1, height // PATCH, width // PATCH)
