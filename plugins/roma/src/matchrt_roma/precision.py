"""What stays in float32 when the rest computes in half, and why.

By module path, as `matchrt` names the nodes of an export: MODULE.PATH/NODE, and /NODE for a part's own forward. DINOv2, VGG, the
projections, the match decoder's blocks and the refiners' blocks compute in half, as upstream's autocast has them.
"""

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
    "Clip",
    "Softmax",
    "Sigmoid",
    "Resize",
)
"""Operators that round. Those that only move values take the type they are given."""

_REFINING = ("coarse", "coarse_final", "refine", "refine_final", "upsample")

RULES = (
    PrecisionRule(
        pattern=r"^process[./]",
        reason="Gaussian process: its system has condition numbers above 10^4, and half or TF32 loses the solution",
        networks=("gp", "gp_readout"),
    ),
    PrecisionRule(
        pattern=r"^/",
        op_types=ARITHMETIC,
        reason="read-out and finish: anchors, warp and certainty, of which half resolves only 0.2 px",
        networks=("gp_readout", *_REFINING),
    ),
    PrecisionRule(
        pattern=r"^decoder\.to_out[./]",
        reason="anchor logits: equal values in half decide the best anchor, and with it the place, by their order",
        networks=("coarse", "coarse_final"),
    ),
    PrecisionRule(
        pattern=r"^stages?(16|8|\.\d+)/",
        op_types=ARITHMETIC,
        reason="flow and certainty: small steps are added to coordinates in -1 to 1, of which half resolves only 0.2 px",
        networks=_REFINING,
    ),
    PrecisionRule(
        pattern=r"\.refiner/",
        op_types=("Add",),
        reason="window of the local correlation: places one pixel apart",
        networks=_REFINING,
    ),
    PrecisionRule(
        pattern=r"\.correlation\.places[./]",
        reason="window of the local correlation: whole pixels and fractions of positions, of which half resolves only an eighth",
        networks=_REFINING,
    ),
    PrecisionRule(
        pattern=r"\.refiner\.out_conv[./]",
        reason="refiner output: a step of the flow, in float32 upstream too",
        networks=_REFINING,
    ),
)
