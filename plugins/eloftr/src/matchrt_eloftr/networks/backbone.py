"""RepVGG backbone (RepVGG, CVPR 2021, configuration A1 cut at 1/8) in training form and in its exact deploy form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matchrt_eloftr.networks.config import Architecture


class ConvNorm(nn.Module):
    """A convolution without bias and its batch normalisation (upstream names `conv`, `bn`)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        out: Tensor = self.bn(self.conv(x))
        return out


class RepVGGBlock(nn.Module):
    """relu(3x3 + 1x1 + identity), each with its normalisation: 12 or 17 tensors; in deploy form one 3x3 with a bias."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, deploy: bool = False) -> None:
        super().__init__()
        self.deploy = deploy
        if deploy:
            self.rbr_reparam = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=True)
            return
        self.rbr_dense = ConvNorm(inputs, outputs, 3, stride)
        self.rbr_1x1 = ConvNorm(inputs, outputs, 1, stride)
        self.rbr_identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        if self.deploy:
            return F.relu(self.rbr_reparam(x))
        out = self.rbr_dense(x) + self.rbr_1x1(x)
        if self.rbr_identity is not None:
            out = out + self.rbr_identity(x)
        return F.relu(out)


class Backbone(nn.Module):
    """Features at 1/2, 1/4 and 1/8 of the image."""

    def __init__(self, architecture: Architecture, *, deploy: bool = False) -> None:
        super().__init__()
        d1, d2, d3 = architecture.dims
        n1, n2, n3 = architecture.blocks
        self.layer0 = RepVGGBlock(1, d1, 2, deploy=deploy)
        self.layer1 = _stage(d1, d1, n1, 1, deploy)
        self.layer2 = _stage(d1, d2, n2, 2, deploy)
        self.layer3 = _stage(d2, d3, n3, 2, deploy)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 1, H, W) in [0, 1] to x1 (B, d1, H/2, W/2), x2 (B, d2, H/4, W/4), coarse (B, d3, H/8, W/8)."""
        x1 = self.layer1(self.layer0(image))
        x2 = self.layer2(x1)
        return x1, x2, self.layer3(x2)


def _stage(inputs: int, outputs: int, blocks: int, stride: int, deploy: bool) -> nn.Sequential:
    first = RepVGGBlock(inputs, outputs, stride, deploy=deploy)
    return nn.Sequential(first, *(RepVGGBlock(outputs, outputs, 1, deploy=deploy) for _ in range(blocks - 1)))


def fuse_block(block: RepVGGBlock) -> RepVGGBlock:
    """The deploy form of a training-form block in eval mode; exact algebra, computed in float64 and rounded once."""
    if block.deploy:
        return block
    dense = block.rbr_dense.conv
    kernel, bias = fold_norm(dense.weight, block.rbr_dense.bn)
    kernel_1x1, bias_1x1 = fold_norm(block.rbr_1x1.conv.weight, block.rbr_1x1.bn)
    kernel, bias = kernel + F.pad(kernel_1x1, (1, 1, 1, 1)), bias + bias_1x1
    if block.rbr_identity is not None:
        unit = torch.eye(dense.out_channels, dtype=torch.float64)[:, :, None, None]
        kernel_id, bias_id = fold_norm(unit, block.rbr_identity)
        kernel, bias = kernel + F.pad(kernel_id, (1, 1, 1, 1)), bias + bias_id
    fused = RepVGGBlock(dense.in_channels, dense.out_channels, dense.stride[0], deploy=True)
    with torch.no_grad():
        fused.rbr_reparam.weight.copy_(kernel)
        assert fused.rbr_reparam.bias is not None
        fused.rbr_reparam.bias.copy_(bias)
    return fused.eval()


def fold_norm(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel (O, I, k, k) and bias (O,) in float64 of a convolution followed by `norm` with its running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return weight.detach().double() * scale[:, None, None, None], norm.bias.detach().double() - (
        norm.running_mean.double() * scale
    )
