"""Run a bundle: images in, matches out. No torch, no onnx."""

from __future__ import annotations

from matchrt.runtime.loading import load
from matchrt.runtime.matcher import Matcher

__all__ = ["Matcher", "load"]
