"""Random weights with which every stage matters: statistics, positions and scales that are not neutral, and a peaked choice of anchors.

With PyTorch's own initial values the anchors' logits are nearly equal, and rounding errors choose among them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def fill(
    module: nn.Module,
    generator: torch.Generator | None = None,
    *,
    peak: float = 2.0,
    step: float = 0.02,
    certainty: float = 0.06,
) -> None:
    """Fill every tensor, in the order of their names, from `generator` (torch's own if there is none); in place.

    `peak` scales the logits of the anchors, `step` what a refiner adds to the flow, `certainty` what it adds to the certainty's logit
    (a share of `step`); the defaults are for the full widths, where anchors differ by tens, certainties by a unit or two, so that few
    saturate and tie, and refined flows by parts of a cell. Names are upstream's.
    """
    for name, tensor in sorted(module.state_dict().items()):
        if not tensor.is_floating_point():
            tensor.fill_(12345)
        else:
            _fill(name, tensor, generator, peak, step, certainty)


def _fill(
    name: str, tensor: Tensor, generator: torch.Generator | None, peak: float, step: float, certainty: float
) -> None:
    if name.endswith("running_var"):
        tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    elif name.endswith(("running_mean", "pos_embed", "cls_token", "mask_token")):
        tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
    elif name.endswith("gamma") or (name.endswith("weight") and tensor.ndim == 1):
        tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    elif name.endswith("pos_conv.weight"):
        tensor.copy_(1.4 * torch.rand(tensor.shape, generator=generator) - 0.7)
    elif tensor.ndim >= 2:
        gain = peak if "to_out" in name else step if "out_conv" in name else 1.4
        tensor.copy_(gain * tensor[0].numel() ** -0.5 * torch.randn(tensor.shape, generator=generator))
        if name.endswith(("to_out.weight", "out_conv.weight")):
            tensor[-1] *= 0.1 if "to_out" in name else certainty
    else:
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
