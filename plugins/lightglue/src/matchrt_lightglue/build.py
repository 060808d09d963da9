"""Build the networks of a variant."""

from __future__ import annotations

from torch import nn

from matchrt.model import Settings
from matchrt_lightglue.networks.lightglue import LightGlue
from matchrt_lightglue.networks.superpoint import SuperPoint
from matchrt_lightglue.variants import find_variant


def build(variant: str, settings: Settings) -> nn.ModuleDict:
    """Extractor and matcher in eval mode."""
    sizes = find_variant(variant)
    extractor = SuperPoint(
        channels=sizes.channels,
        head_dim=sizes.head_dim,
        descriptor_dim=sizes.descriptor_dim,
        max_keypoints=settings.integer("keypoints"),
        detection_threshold=settings.number("detection_threshold"),
        nms_radius=settings.integer("nms_radius"),
        border=settings.integer("border"),
    )
    matcher = LightGlue(input_dim=sizes.descriptor_dim, dim=sizes.dim, heads=sizes.heads, n_layers=sizes.n_layers)
    return nn.ModuleDict({"extractor": extractor, "matcher": matcher}).eval()
