"""Random weights on which the network behaves as with trained ones: features that tell cells apart, few ties.

PyTorch's own initial values give nearly constant features, so that cells and fine pixels are chosen by rounding errors, and PyTorch in
float32 differs from itself in float64. What all cells have in common is taken out: it decides no match, but its rounding would.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matchrt.weights.pictures import dead_leaves
from matchrt_eloftr.networks import EfficientLoFTR
from matchrt_eloftr.networks.config import COARSE_STRIDE
from matchrt_eloftr.networks.network import fuse_backbone


def fill(network: EfficientLoFTR) -> None:
    """Random weights from torch's own generator, and running statistics of pictures like photographs; in place."""
    network.requires_grad_(False)
    training = network
    if network.backbone.layer0.deploy:
        with torch.random.fork_rng(
            devices=[]
        ):  # its own initial values are not wanted, and the same seed shall give the same weights
            training = EfficientLoFTR(network.settings, network.architecture)
    randomise(training)
    pictures = dead_leaves().double(), dead_leaves().double()
    centre(calibrate(training.double(), *pictures), *pictures)
    training.float()
    if training is not network:
        network.load_state_dict(fuse_backbone(training).state_dict())


def randomise(network: nn.Module) -> None:
    """Weights that keep the scale of activations, from torch's own generator; in place."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)


@torch.no_grad()
def calibrate(network: EfficientLoFTR, image0: Tensor, image1: Tensor) -> EfficientLoFTR:
    """Running statistics of one pass over the pair, (1, 1, H, W) each; `network` itself, in eval mode."""
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None  # one pass: its statistics, not a moving average
    network.train()
    coarse0, coarse1, middle, fine = network.features(image0, image1)
    network.pyramid(*_transformed(network, coarse0, coarse1), middle, fine)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def centre(network: EfficientLoFTR, image0: Tensor, image1: Tensor) -> None:
    """Take the mean of the pair's coarse features off, in the bias of the last update; in place."""
    coarse0, coarse1, _, _ = network.features(image0, image1)
    mean = torch.cat(_transformed(network, coarse0, coarse1)).mean((0, 2, 3))
    last = [m for m in network.loftr_coarse.modules() if isinstance(m, nn.LayerNorm)][-1]
    last.bias.sub_(mean)


def _transformed(network: EfficientLoFTR, coarse0: Tensor, coarse1: Tensor) -> tuple[Tensor, Tensor]:
    """Coarse features after attention; both images are shown whole."""
    size = [side * COARSE_STRIDE for side in coarse0.shape[-2:]]
    valid = torch.tensor([size], dtype=torch.int32) if network.settings.valid == "input" else None
    return network.transform(coarse0, coarse1, valid, valid)
