"""The two PyTorch networks: the SuperPoint extractor and the LightGlue matcher."""

from __future__ import annotations

from matchrt_lightglue.networks.lightglue import LightGlue, TrainingOutput
from matchrt_lightglue.networks.superpoint import DenseFeatures, SuperPoint

__all__ = ["DenseFeatures", "LightGlue", "SuperPoint", "TrainingOutput"]
