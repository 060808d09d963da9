"""Which operators keep float32 and why, which only move values, and which numbers half precision can carry."""

from __future__ import annotations

import numpy as np

HALF_MAX = 65504.0
"""The largest finite number of float16."""

LOST = 2.0**-10
"""A constant fits if rounding it changes no element by more than this share of its largest element.

Rounding of normal numbers changes at most 2**-11; more means that the whole constant lies among the subnormals, as 1e-6 does.
"""

KEEP: dict[str, str] = {
    **dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "LpNormalization",
         "MeanVarianceNormalization", "ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd",
         "ReduceLogSum", "ReduceLogSumExp", "Mean", "CumSum"),
        "statistics: sums over many elements overflow or lose digits in half",
    ),
    **dict.fromkeys(
        ("Exp", "Log", "LogSoftmax", "Softplus", "Pow", "Sqrt", "Reciprocal", "Softmax"),
        "exponentials, roots and reciprocals: their results leave the range of half",
    ),
    **dict.fromkeys(
        ("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh"),
        "angles: half resolves a large angle to whole degrees",
    ),
    **dict.fromkeys(
        ("GridSample", "RoiAlign", "AffineGrid", "NonMaxSuppression", "DeformConv"),
        "coordinates: half resolves 1 px at 1024, and both inputs must have one type",
    ),
    **dict.fromkeys(("Floor", "Ceil", "Round", "Mod", "Range", "BitShift"), "index arithmetic"),
    **dict.fromkeys(("Det", "Inverse"), "solves"),
}  # fmt: skip
"""Operators kept in float32, with the reason. Softmax inside attention is the exception: fused kernels hold it in float32 themselves."""

MOVE = frozenset(
    ("Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Gather",
     "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Scatter", "Expand", "Tile", "Pad", "Where", "SpaceToDepth",
     "DepthToSpace", "ReverseSequence", "Trilu", "Compress", "OneHot", "ConstantOfShape", "EyeLike", "Dropout",
     "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Max", "Min", "Clip", "Relu", "Abs", "Neg", "Sign",
     "ArgMax", "ArgMin", "TopK", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
)  # fmt: skip
"""Operators that choose among values or move them, exact in any type: they work in the type that they are given."""

FREE = frozenset(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Concat"))
"""Moving operators behind which one cast does the work of several before them."""

DECIDES = frozenset(
    ("ArgMax", "ArgMin", "TopK", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "NonMaxSuppression")
)
"""Operators whose choice depends on small differences: float32 values are not narrowed on their account."""

COMPARES = frozenset(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"))
"""Comparisons: a constant must be the same number in half."""

FLEXIBLE = frozenset(("Shape", "Size", "IsNaN", "IsInf"))
"""Operators that take any type and whose answer has another one."""

ELEMENTWISE = frozenset(
    ("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Floor", "Ceil", "Round", "Mod", "Min", "Max", "Clip", "Pow", "Sqrt",
     "Reciprocal", "Where", "Sum", "Exp", "Sign")
)  # fmt: skip
"""Arithmetic that carries coordinates and statistics from one node to the next."""

CARRIES = frozenset(
    ("Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Gather", "GatherElements",
     "GatherND", "Expand", "Tile", "Pad", "Cast")
)  # fmt: skip
"""Operators that change no number: coordinates and statistics remain such."""

FLOAT_SLOTS = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that stay float32 whatever the node computes in: they are sizes, not values."""


def half_problem(name: str, value: np.ndarray, *, exact: bool = False) -> str | None:
    """Why half cannot carry a constant; None if it can. Infinities pass: half has them. `exact`: every element must be equal."""
    finite = value[np.isfinite(value)].astype(np.float32, copy=False)
    if not finite.size:
        return None
    largest = float(np.abs(finite).max())
    if largest > HALF_MAX:
        return f"constant {name!r} reaches {largest:.3g}, beyond half's {HALF_MAX:.0f}"
    lost = float(np.abs(finite - finite.astype(np.float16).astype(np.float32)).max())
    if lost > (0.0 if exact else LOST * largest):
        return f"constant {name!r} loses {lost / largest:.1%} of its largest value, {largest:.3g}, in half"
    return None
