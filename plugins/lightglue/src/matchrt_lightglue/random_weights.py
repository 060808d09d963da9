"""Random weights on which both networks behave as with trained ones: keypoints in some cells only, many matches, scores spread over 0 to 1.

With PyTorch's own initial values no score reaches the usual threshold of 0.1, and every comparison is of nothing with nothing. With
weights of the right scale alone, keypoints in flat areas share one descriptor and every layer makes points more alike: a few matches,
which rounding to half decides. So the extractor is calibrated on random pictures, and updates are small.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matchrt.weights.pictures import dead_leaves


def fill(network: nn.ModuleDict) -> None:
    """Weights of extractor and matcher from torch's own generator, in place; the extractor's are calibrated on random pictures."""
    extractor = network["extractor"]
    fill_extractor(extractor)
    pictures = torch.cat([dead_leaves() for _ in range(4)])
    calibrate_extractor(extractor.double(), pictures.double())
    extractor.float()
    # Updates that do not drown the descriptors: otherwise all points of an image become alike, and half rounding decides.
    fill_matcher(network["matcher"], sharpness=24.0, update=0.02)


@torch.no_grad()
def calibrate_extractor(extractor: nn.Module, pictures: Tensor) -> None:
    """SuperPoint: no keypoints where a picture is flat, and descriptors that tell its places apart; in place.

    The first layer sees contrast alone, every layer keeps the scale of its inputs, and descriptors are decorrelated (the inverse
    square root of the second moments of the features' directions), as trained ones are. `pictures` (B, 1, H, W), float64.
    """
    x = pictures
    first = extractor.get_submodule("conv1a")
    assert isinstance(first, nn.Conv2d)
    first.weight.sub_(first.weight.mean((2, 3), keepdim=True))
    for stage in range(1, 5):
        for name in (f"conv{stage}a", f"conv{stage}b"):
            x = F.relu(_scaled(extractor, name, x))
        x = F.max_pool2d(x, 2) if stage < 4 else x
    _scaled(extractor, "convPb", F.relu(_scaled(extractor, "convPa", x)), 6.0)
    describe = extractor.get_submodule("convDb")
    assert isinstance(describe, nn.Conv2d)
    features = F.normalize(F.relu(_scaled(extractor, "convDa", x)).permute(0, 2, 3, 1).flatten(0, 2), dim=-1)
    values, vectors = torch.linalg.eigh(features.T @ features / len(features))
    root = vectors @ torch.diag((values + 0.03 * values.mean()) ** -0.5) @ vectors.T
    describe.weight.copy_(root[: describe.out_channels, :, None, None])
    detect = extractor.get_submodule("convPb")
    assert isinstance(detect, nn.Conv2d)
    assert detect.bias is not None
    detect.bias[-1] = 8.0


def _scaled(extractor: nn.Module, name: str, x: Tensor, scale: float = 1.0) -> Tensor:
    """The layer's outputs after its weights are scaled so that their root mean square is about `scale`."""
    layer = extractor.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    layer.weight.mul_(scale / layer(x).square().mean().sqrt())
    out: Tensor = layer(x)
    return out


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
def fill_matcher(matcher: nn.Module, sharpness: float = 12.0, update: float = 0.1) -> None:
    """LightGlue: alike descriptors match with high scores, and positions matter. `sharpness` scales what the last product compares,
    `update` what a layer adds to a point; below 0.1 the rows that make it sum to zero, so that points do not all move the same way."""
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
            tensor.copy_(noise * update * tensor.shape[-1] ** -0.5)  # else similarities of thousands drown in rounding
            if update < 0.1:
                tensor.sub_(tensor.mean(1, keepdim=True))
        elif name.endswith("ffn.3.bias") and update < 0.1:
            tensor.copy_(0.1 * 0.02 * noise)
        elif name.endswith(("Wqkv.weight", "to_qk.weight")):
            tensor.copy_(noise * 5 * tensor.shape[-1] ** -0.5)  # attention that chooses
        elif "confidence" not in name:
            tensor.copy_(noise * (0.02 if tensor.ndim == 1 else 0.5 * tensor.shape[-1] ** -0.5))
