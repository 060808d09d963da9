"""Steps over ONNX graphs: each works on a copy, is idempotent, and ends in the checker and shape inference.

`prepare` runs them for a target; `lint` says what a target refuses; `to_half` types a graph for float16; `search_mixed` finds what
must stay in float32. Needs onnx (extra `convert`).
"""

from __future__ import annotations

from matchrt.graph.passes import run_passes

__all__ = ["run_passes"]
