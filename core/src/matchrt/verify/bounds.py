"""What counts as equal: bounds on matches and tensors, by precision and matcher."""

from __future__ import annotations

from dataclasses import dataclass

from matchrt.export.compare import TensorDifference
from matchrt.model import Parity
from matchrt.verify.figures import MatchFigures, Spread

EXACT = ("fp32",)
"""Precisions held to the matcher's own tolerances, tensor by tensor. The others round on purpose."""
EXACT_MEAN_PX = 0.01
HALF_MEAN_PX, HALF_WITHIN, HALF_COUNT, HALF_SAME = 0.1, 0.995, 0.01, 0.95
HALF_RELATIVE = 0.05
"""Largest relative error of a tensor where random weights leave nothing else to judge."""
HALF_DIFFERING = 0.2
"""There, the largest share of choices that differ: with random weights many are near ties, and rounding alone turns up to 7 % over."""
ROUNDING_FACTOR = 2.0
"""Or so many times what rounding to half does to it by itself, if that is more."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the figures are held to.

    `mean_px`: of the coordinates of matches found both ways, and of a dense warp where the reference is certain. `within_1px`: least
    share of them within 1 px. `same`: least share of matches found both ways within `radius` pixels; up to `spare` may differ however
    few there are. `count`: largest relative difference of the number of matches. `relative`: largest relative error of float tensors on
    equal inputs, and `differing` the largest share of choices, where `tensors` says that they are judged but not by the matcher's own
    tolerances.
    """

    mean_px: float
    within_1px: float
    same: float
    radius: float
    count: float
    spare: int
    exact: bool
    matches: bool
    tensors: bool
    relative: float = HALF_RELATIVE
    differing: float = HALF_DIFFERING


def bounds_for(parity: Parity, precision: str, tolerance_px: float | None, random_weights: bool) -> Bounds:
    """Of a matcher in a precision. `tolerance_px` replaces the bound on the mean."""
    exact = precision in EXACT
    mean = (EXACT_MEAN_PX if exact else HALF_MEAN_PX) if tolerance_px is None else tolerance_px
    return Bounds(
        mean_px=mean,
        within_1px=0.0 if exact else HALF_WITHIN,
        same=parity.shared_matches if exact else min(HALF_SAME, parity.shared_matches),
        radius=max(parity.coordinate_px if exact else 1.0, tolerance_px or 0.0),
        count=1.0 if exact else HALF_COUNT,
        spare=parity.spare_matches,
        exact=exact,
        matches=not random_weights,
        tensors=exact or random_weights,
    )


def tensor_failure(d: TensorDifference, bounds: Bounds, rounding: float = 0.0) -> str | None:
    """One line if the tensor is beyond its bound; `rounding` is the relative error that rounding to half makes by itself, if known."""
    if bounds.exact:
        return (
            None
            if d.passed
            else (
                f"{d.network}.{d.tensor}: {d.outliers:.2%} of {d.elements} elements beyond the tolerance, allowed {d.allowed_outliers:.2%} "
                f"(largest difference {d.max_abs:.3g})"
            )
        )
    allowed = max(bounds.relative, ROUNDING_FACTOR * rounding)
    if d.differing > bounds.differing:
        return f"{d.network}.{d.tensor}: {d.differing:.2%} of the choices differ, allowed {bounds.differing:.0%}"
    if d.integral or d.relative <= allowed:
        return None
    alone = f" (rounding to half does {rounding:.3g} by itself)" if rounding else ""
    return f"{d.network}.{d.tensor}: relative error {d.relative:.3g}, allowed {allowed:.3g}{alone}"


def match_failures(m: MatchFigures, bounds: Bounds) -> list[str]:
    """One line for each figure of a pair (or of all of them) that is beyond its bound."""
    lines = []
    if m.same < bounds.same and m.unshared > bounds.spare:
        lines.append(
            f"{m.same:.2%} of the matches are the same within {bounds.radius:g} px ({m.reference} against {m.other}), "
            f"need {bounds.same:.2%}"
        )
    longer = max(m.reference, m.other)
    if abs(m.reference - m.other) > max(bounds.spare, bounds.count * longer):
        lines.append(f"{m.other} matches against {m.reference}, need a count within {bounds.count:.0%}")
    lines += _spread_failures("coordinates", m.coordinates, bounds)
    if m.warp is not None:
        lines += _spread_failures("warp", m.warp, bounds)
    return lines


def _spread_failures(what: str, spread: Spread, bounds: Bounds) -> list[str]:
    lines = []
    if spread.count and spread.mean > bounds.mean_px:
        lines.append(f"{what} differ by {spread.mean:.3g} px on average, allowed {bounds.mean_px:g} px")
    if spread.count and spread.within[2] < bounds.within_1px:
        lines.append(f"{spread.within[2]:.2%} of the {what} are within 1 px, need {bounds.within_1px:.2%}")
    return lines
