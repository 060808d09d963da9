"""LayerNorm as explicit float32 arithmetic, for targets without the fused operator (ONNX opset 16 and older)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matchrt.patches.base import Patch, replaced_modules

FUSED_SINCE_OPSET = 17
"""First ONNX opset with LayerNormalization; newer targets keep the operator, which they compute in one kernel."""


class DecomposedLayerNorm(nn.Module):
    """`nn.LayerNorm` from means, products and one square root, in float32 whatever the input; same parameter names.

    The mean is taken once, and the variance as the mean square of what remains (biased, as `nn.LayerNorm`). It shares
    the parameters of the module it is made from.
    """

    def __init__(self, original: nn.LayerNorm) -> None:
        super().__init__()
        self.axes = tuple(range(-len(original.normalized_shape), 0))
        self.eps = original.eps
        self.weight = original.weight
        self.bias = original.bias

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axes of `x`; the result has the dtype of `x`."""
        wide = x.to(torch.float32)
        centred = wide - wide.mean(self.axes, keepdim=True)
        variance = (centred * centred).mean(self.axes, keepdim=True)
        normed = centred / torch.sqrt(variance + self.eps)
        if self.weight is not None:
            normed = normed * self.weight.to(torch.float32)
        if self.bias is not None:
            normed = normed + self.bias.to(torch.float32)
        return normed.to(x.dtype)


def decomposed_layer_norm() -> Patch:
    """Patch that replaces every `nn.LayerNorm` below the network's root by `DecomposedLayerNorm`."""

    def replace(module: nn.Module) -> nn.Module | None:
        return DecomposedLayerNorm(module) if isinstance(module, nn.LayerNorm) else None

    return Patch(
        name="decomposed-layer-norm",
        reason=f"ONNX has LayerNormalization from opset {FUSED_SINCE_OPSET}, and TensorRT imports it from 8.6",
        exact=True,
        tolerance=1e-5,
        apply=lambda network: replaced_modules(network, replace),
    )


def layer_norm_patches(opset: int) -> tuple[Patch, ...]:
    """What an export to `opset` needs: nothing from 17 on, where the operator exists; the decomposition below."""
    return () if opset >= FUSED_SINCE_OPSET else (decomposed_layer_norm(),)
