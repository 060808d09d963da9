"""EfficientLoFTR as PyTorch networks: the published form, its exact fusion, and the fixed-shape form that is exported."""

from __future__ import annotations

from matchrt_eloftr.networks.config import Architecture, GraphSettings
from matchrt_eloftr.networks.network import EfficientLoFTR, prepare_for_export

__all__ = ["Architecture", "EfficientLoFTR", "GraphSettings", "prepare_for_export"]
