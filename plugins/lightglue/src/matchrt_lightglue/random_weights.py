"""Random weights on which both networks behave as with trained ones: keypoints in some cells only, scores above the threshold.

With PyTorch's own initial values no score reaches the usual threshold of 0.1, and every comparison is of nothing with nothing.
"""

from __future__ import annotations

import torch
from torch import nn


def fill(network: nn.ModuleDict) -> None:
    """Weights of extractor and matcher from torch's own generator, in place."""
    fill_extractor(network["extractor"])
    fill_matcher(
        network["matcher"], sharpness=36.0
    )  # descriptors of a random extractor are more alike than trained ones


@torch.no_grad()
def fill_extractor(extractor: nn.Module) -> None:
    """SuperPoint: activations keep their scale, and most cells say that they hold no keypoint."""
    for name, tensor in extractor.state_dict().items():
        noise = torch.randn(tensor.shape)
        fan = tensor[0].numel() if tensor.ndim > 1 else 1
        tensor.copy_(noise * (2 / fan) ** 0.5 if tensor.ndim > 1 else 0.05 * noise)
        if name == "convPb.weight":
            tensor.mul_(6)
        if name == "convPb.bias":
            tensor[-1] = 4.0


@torch.no_grad()
def fill_matcher(matcher: nn.Module, sharpness: float = 12.0) -> None:
    """LightGlue: alike descriptors match with high scores, and positions matter. `sharpness` scales what the last product compares."""
    for name, tensor in matcher.state_dict().items():
        noise = torch.randn(tensor.shape)
        if name.endswith("final_proj.weight"):
            tensor.copy_(sharpness * torch.eye(len(tensor)) + 0.02 * noise)
        elif name.endswith("matchability.bias"):
            tensor.fill_(3.0)
        elif name == "posenc.Wr.weight":
            tensor.copy_(3 * noise)
        elif name.endswith("ffn.1.weight"):
            tensor.copy_(1 + 0.1 * noise)
        elif name.endswith("ffn.3.weight"):
            tensor.copy_(noise * 0.1 * tensor.shape[-1] ** -0.5)  # else similarities of thousands drown in rounding
        elif name.endswith(("Wqkv.weight", "to_qk.weight")):
            tensor.copy_(noise * 5 * tensor.shape[-1] ** -0.5)  # attention that chooses
        elif "confidence" not in name:
            tensor.copy_(noise * (0.02 if tensor.ndim == 1 else 0.5 * tensor.shape[-1] ** -0.5))
