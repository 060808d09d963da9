"""Steps over ONNX graphs: each is idempotent and ends in the checker and shape inference."""

from __future__ import annotations

from matchrt.graph.passes import run_passes

__all__ = ["run_passes"]
