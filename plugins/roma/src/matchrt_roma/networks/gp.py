"""RoMa's Gaussian process (Edstedt et al., DKM, section 3.2): embedded coordinates regressed by feature similarity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from matchrt_roma.networks.grids import pixel_centres
from matchrt_roma.networks.spd import half_solve


class GaussianProcess(nn.Module):
    """Posterior mean of the support image's embedded coordinates at the query image's features.

    Kernel exp((cos - 1) / T), noise variance `noise` on the diagonal, Fourier basis cos(8π(Wx + b)) of `dim` channels.
    All of it is float32, whatever the rest computes in.
    """

    def __init__(self, dim: int, temperature: float, noise: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.noise = noise
        self.pos_conv = nn.Conv2d(2, dim, 1)

    @torch.no_grad()
    def basis(self, rows: int, columns: int) -> Tensor:
        """Fourier embedding of a grid's pixel centres, `(rows*columns, dim)` float32; a constant when exported."""
        grid = pixel_centres(rows, columns).permute(2, 0, 1)[None].to(self.pos_conv.weight.device)
        # The convolution itself rather than an equal matrix product: 8π multiplies its rounding.
        projected: Tensor = self.pos_conv(grid).float()
        basis: Tensor = torch.cos(8 * math.pi * projected)[0].flatten(1).T.contiguous()
        return basis

    def kernel(self, left: Tensor, right: Tensor) -> Tensor:
        """`(B, N, C)` and `(B, M, C)` to `(B, N, M)`."""
        lengths = _length(left)[..., None] * _length(right)[:, None, :]
        return (((left @ right.transpose(-1, -2)) / (lengths + 1e-6) - 1.0) / self.temperature).exp()

    def forward(self, query: Tensor, support: Tensor, basis: Tensor, identity: Tensor) -> Tensor:
        """Maps `(B, C, h, w)` and `(B, C, h2, w2)` and the support grid's `basis` to the mean `(B, dim, h, w)`.

        `identity` is a constant `(leaf, leaf)` identity; its size is the largest block that is inverted at once.
        """
        batch, _, height, width = query.shape
        left = query.float().flatten(2).transpose(1, 2)
        right = support.float().flatten(2).transpose(1, 2)
        targets = basis.expand(batch, -1, -1)
        rhs = torch.cat((targets, self.kernel(right, left)), dim=-1)
        halves = half_solve(self.kernel(right, right), rhs, identity, self.noise, identity.shape[0])
        dim = basis.shape[-1]
        mean = halves[..., :dim].transpose(-1, -2) @ halves[..., dim:]
        return mean.reshape(batch, dim, height, width)


def _length(vectors: Tensor) -> Tensor:
    # Not `norm`: ONNX's ReduceL2 changed its form at opset 18, so that it cannot be written for 17.
    return (vectors * vectors).sum(dim=-1).sqrt()
