"""Build the networks of a variant."""

from __future__ import annotations

from torch import nn

from matchrt.model import Settings
from matchrt_lightglue.networks.lightglue import LightGlue
from matchrt_lightglue.networks.superpoint import SuperPoint


def build(variant: str, settings: Settings) -> nn.ModuleDict:
    """Extractor and matcher in eval mode."""
    extractor = SuperPoint(
        max_keypoints=settings.integer("keypoints"),
        detection_threshold=settings.number("detection_threshold"),
        nms_radius=settings.integer("nms_radius"),
        border=settings.integer("border"),
    )
    return nn.ModuleDict({"extractor": extractor, "matcher": LightGlue()}).eval()
