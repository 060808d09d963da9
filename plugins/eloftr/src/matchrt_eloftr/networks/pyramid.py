"""Fine features: the feature pyramid of EfficientLoFTR (section 3.4, upstream `fine_preprocess`), kept at half resolution.

Upstream upsamples the last map to full resolution and unfolds it. The windows are interpolated from half resolution in `fine.py`
instead, which gives the same values without a full-resolution map of 64 channels.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matchrt_eloftr.networks.backbone import fold_norm
from matchrt_eloftr.networks.config import Architecture


class FinePyramid(nn.Module):
    """17 tensors under upstream's names."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        d1, d2, d3 = architecture.dims
        self.layer3_outconv = _conv(d3, d3, 1)
        self.layer2_outconv = _conv(d2, d3, 1)
        self.layer2_outconv2 = nn.Sequential(_conv(d3, d3, 3), nn.BatchNorm2d(d3), nn.LeakyReLU(), _conv(d3, d2, 3))
        self.layer1_outconv = _conv(d1, d2, 1)
        self.layer1_outconv2 = nn.Sequential(_conv(d2, d2, 3), nn.BatchNorm2d(d2), nn.LeakyReLU(), _conv(d2, d1, 3))

    def forward(self, coarse: Tensor, x2: Tensor, x1: Tensor) -> Tensor:
        """Transformed coarse features (B, d3, H/8, W/8), x2 and x1 of the backbone, to (B, d1, H/2, W/2)."""
        coarse = self.layer3_outconv(coarse / coarse.shape[1] ** 0.5)
        middle = self.layer2_outconv2(self.layer2_outconv(x2) + _double(coarse))
        fine: Tensor = self.layer1_outconv2(self.layer1_outconv(x1) + _double(middle))
        return fine


def folded_pyramid(pyramid: FinePyramid) -> FinePyramid:
    """A copy whose batch normalisations are part of the convolutions before them (exact algebra in float64)."""
    folded = copy.deepcopy(pyramid)
    for branch in (folded.layer2_outconv2, folded.layer1_outconv2):
        conv, norm = branch[0], branch[1]
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        weight, bias = fold_norm(conv.weight, norm)
        joined = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=True)
        with torch.no_grad():
            joined.weight.copy_(weight)
            assert joined.bias is not None
            joined.bias.copy_(bias)
        branch[0], branch[1] = joined, nn.Identity()
    return folded


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
