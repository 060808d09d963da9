"""What stays in float32 when the rest computes in half, and why."""

from __future__ import annotations

from matchrt.model import PrecisionRule

ARITHMETIC = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Max",
    "Min",
    "MatMul",
    "Gemm",
    "Neg",
    "Abs",
    "Exp",
    "Log",
    "LogSoftmax",
    "Softplus",
)

RULES = (
    PrecisionRule(
        pattern=r"^conv1a\.parts[./]",
        reason="grey values: rounded to half they moved one match in forty; split in two, each part is exact in half",
        networks=("extractor",),
    ),
    PrecisionRule(
        pattern=r"^convPb[./]",
        reason="detector logits: equal values in half make plateaus that suppression keeps whole, and reorder keypoints",
        networks=("extractor",),
    ),
    PrecisionRule(
        pattern=r"^posenc[./]",
        reason="positions: an angle of the rotary encoding needs more than half's 11 bits",
        networks=("matcher",),
    ),
    PrecisionRule(
        pattern=r"^/",
        op_types=ARITHMETIC,
        reason="normalised positions, padding masks and the assignment: what the network computes outside its layers",
        networks=("matcher",),
    ),
    PrecisionRule(
        pattern=r"^log_assignment\.",
        reason="assignment: similarities reach thousands and their log-softmax decides the matches",
        networks=("matcher",),
    ),
)
"""By module path, as `matchrt` names the nodes of an export: MODULE.PATH/NODE, and /NODE for the network's own forward."""
