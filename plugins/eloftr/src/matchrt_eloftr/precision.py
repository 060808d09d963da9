"""What stays in float32 when the rest computes in half, and why. By module path, as `matchrt` names the nodes of an export."""

from __future__ import annotations

from matchrt.model import PrecisionRule

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
