"""What stays in float32 when the rest computes in half, and why. By module path, as `matchrt` names the nodes of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matchrt.graph.versions import constrains_layers
from matchrt.model import PrecisionRule, Target

RULES = (
    PrecisionRule(
        pattern=r"^coarse_matching[./]",
        reason="coarse matches: similarities reach hundreds, and differences far below half's step there decide a match",
    ),
    PrecisionRule(
        pattern=r"^fine_matching[./]",
        reason="fine matches: the best of 4096 pixel pairs is chosen, and coordinates above 1024 have steps of 1 in half",
    ),
)

BACKBONE = PrecisionRule(
    pattern=r"^backbone[./]",
    reason="the backbone: TensorRT 8 adds up half convolutions in half, four times as far off as rounding alone; TF32 adds in float32",
)


def rules(target: Target) -> Sequence[PrecisionRule]:
    """What stays in float32 for `target`."""
    return (*RULES, BACKBONE) if constrains_layers(target) else RULES


def engine_options(target: Target) -> Mapping[str, bool]:
    """TF32 in half engines of TensorRT: the matrix units' way with float32.

    It cuts factors to 11 bits, as half does, and adds in float32. The factors of both matching stages come from half layers, or are handed
    over in two parts (`networks.fine.in_parts`), so nothing is lost.
    """
    return {"tf32": True} if target.backend.startswith("tensorrt") and target.precision == "fp16" else {}
