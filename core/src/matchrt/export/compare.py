"""Compare two sets of tensors, and two sets of matches, in terms that a person can judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from matchrt.matches import Matches
from matchrt.model import Alignment, NetworkSpec, Parity, Tolerance

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """How one tensor differs: `max_abs` and `mean_abs` over the elements compared, and the share beyond the tolerance.

    `relative` is the root mean square of the difference over that of the reference, where both chose alike if the tensor depends on a
    choice. `integral` tells tensors of whole numbers. `differing`: of a choice, the share of those made by either that differ; of a
    list's points, the share of rows without a partner.
    """

    network: str
    tensor: str
    elements: int
    max_abs: float
    mean_abs: float
    outliers: float
    allowed_outliers: float
    relative: float = 0.0
    integral: bool = False
    differing: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the share beyond the tolerance is allowed."""
        return self.outliers <= self.allowed_outliers

    def to_dict(self) -> dict[str, object]:
        """JSON-able values, with `passed`; what is not finite is None."""
        plain = {n: None if isinstance(v, float) and not np.isfinite(v) else v for n, v in asdict(self).items()}
        return {**plain, "passed": self.passed}


def compare_tensors(network: NetworkSpec, reference: Tensors, other: Tensors, parity: Parity) -> list[TensorDifference]:
    """Differences of each output of `network`. Rows of lists are paired first where `parity.align` says so."""
    alignment = parity.align.get(network.name)
    rows = _aligned_rows(reference, other, alignment) if alignment else None
    row_axis = next((t.axes[1] for t in network.outputs if alignment and t.name == alignment.points), None)
    found = []
    for spec in network.outputs:
        tolerance = parity.tensors.get(spec.name, parity.default)
        a, b = np.asarray(reference[spec.name]), np.asarray(other[spec.name])
        if rows is not None and row_axis in spec.axes[1:2]:
            difference = _difference(network.name, spec.name, *rows.take(a, b), tolerance, rows.unpaired)
            listed = alignment is not None and spec.name == alignment.points
            found.append(replace(difference, differing=rows.unpaired) if listed else difference)
        else:
            difference = _difference(network.name, spec.name, a, b, tolerance)
            found.append(_of_choices(difference, reference, other, parity.choices))
    return found


def _of_choices(
    difference: TensorDifference, reference: Tensors, other: Tensors, choices: Mapping[str, str]
) -> TensorDifference:
    """The same with `differing` of a choice, or `relative` of what depends on one."""
    name = difference.tensor
    if name in choices.values():
        return replace(difference, differing=turned_over(reference[name], other[name]))
    if name not in choices:
        return difference
    a, b = reference[choices[name]], other[choices[name]]
    if not a.shape == b.shape == reference[name].shape == other[name].shape:
        return replace(difference, relative=float("inf"))
    alike = a == b
    return replace(difference, relative=relative_error(reference[name][alike], other[name][alike]))


def turned_over(reference: np.ndarray, other: np.ndarray) -> float:
    """Share of the choices made by either (not negative) that differ; 0 where there are none, infinite where the shapes differ."""
    if reference.shape != other.shape:
        return float("inf")
    made = (reference >= 0) | (other >= 0)
    return float((reference != other)[made].mean()) if made.any() else 0.0


def _difference(
    network: str, name: str, a: np.ndarray, b: np.ndarray, tolerance: Tolerance, unpaired: float = 0.0
) -> TensorDifference:
    if a.shape != b.shape:
        gap, beyond = np.array([np.inf]), np.array([True])
    else:
        x, y = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(invalid="ignore"):
            gap = np.where(x == y, 0.0, np.abs(x - y))
        gap = np.where(np.isnan(gap), np.where(np.isnan(x) & np.isnan(y), 0.0, np.inf), gap)
        limit = 0.0 if a.dtype.kind in "biu" else tolerance.atol + tolerance.rtol * np.abs(x)
        beyond = gap > limit
    share = float(beyond.mean()) if beyond.size else 0.0
    return TensorDifference(
        network=network,
        tensor=name,
        elements=int(a.size),
        max_abs=float(gap.max()) if gap.size else 0.0,
        mean_abs=float(gap.mean()) if gap.size else 0.0,
        outliers=unpaired + (1 - unpaired) * share,
        allowed_outliers=max(tolerance.outliers, min(1.0, tolerance.spare / max(a.size, 1))),
        relative=relative_error(a, b),
        integral=a.dtype.kind in "biu",
    )


def relative_error(reference: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of the difference over that of the reference, over the elements that are finite in both.

    Infinite where the shapes or the places of non-finite elements differ, or the reference is all zero and the other is not.
    """
    if reference.shape != other.shape:
        return float("inf")
    x, y = reference.astype(np.float64), other.astype(np.float64)
    usable = np.isfinite(x)
    if not np.array_equal(usable, np.isfinite(y)):
        return float("inf")
    gap = float(np.square(x[usable] - y[usable]).sum())
    return (
        float(np.sqrt(gap / scale))
        if (scale := float(np.square(x[usable]).sum()))
        else (0.0 if gap == 0 else float("inf"))
    )


@dataclass(frozen=True)
class _Rows:
    """Paired rows of a batch of lists, and the share of rows without a partner."""

    pairs: tuple[tuple[np.ndarray, np.ndarray], ...]
    unpaired: float

    def take(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        left = [a[i][p] for i, (p, _) in enumerate(self.pairs)]
        right = [b[i][q] for i, (_, q) in enumerate(self.pairs)]
        return np.concatenate(left), np.concatenate(right)


def _aligned_rows(reference: Tensors, other: Tensors, alignment: Alignment) -> _Rows:
    a, b = reference[alignment.points], other[alignment.points]
    pairs, total, paired = [], 0, 0
    for i in range(len(a)):
        n = int(reference[alignment.count].reshape(-1)[i]) if alignment.count else len(a[i])
        m = int(other[alignment.count].reshape(-1)[i]) if alignment.count else len(b[i])
        p, q = pair_points(a[i][:n], b[i][:m], alignment.radius)
        pairs.append((p, q))
        total += max(n, m)
        paired += min(max(n, m), len(p) + alignment.spare)
    return _Rows(tuple(pairs), 1 - paired / total if total else 0.0)


def pair_points(a: np.ndarray, b: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `a` (N, D) and `b` (M, D) that are each other's nearest and at most `radius` apart, as two index arrays.

    Points are looked up on a grid of cells of side `radius`, so memory grows with N + M.
    """
    if not len(a) or not len(b):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    forward, backward = _nearest(a, b, radius), _nearest(b, a, radius)
    rows = np.flatnonzero(forward >= 0)
    mutual = rows[backward[forward[rows]] == rows]
    return mutual, forward[mutual]


def _nearest(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Index of the nearest row of `b` within `radius` for each row of `a`; -1 where there is none."""
    import itertools

    cells: dict[tuple[int, ...], list[int]] = {}
    for i, cell in enumerate(np.floor(b / radius).astype(np.int64)):
        cells.setdefault(tuple(cell.tolist()), []).append(i)
    found = np.full(len(a), -1, np.int64)
    offsets = list(itertools.product((-1, 0, 1), repeat=a.shape[1]))
    for i, cell in enumerate(np.floor(a / radius).astype(np.int64).tolist()):
        near = [j for o in offsets for j in cells.get(tuple(c + d for c, d in zip(cell, o, strict=True)), ())]
        if near:
            distance = np.linalg.norm(b[near] - a[i], axis=1)
            best = int(distance.argmin())
            if distance[best] <= radius:
                found[i] = near[best]
    return found


@dataclass(frozen=True, kw_only=True)
class MatchDifference:
    """How two results for one pair differ. `shared` is the share of matches found both ways (1.0 where both are empty)."""

    pair: str
    reference: int
    other: int
    shared: float
    max_px: float
    mean_px: float
    max_score: float

    @property
    def unshared(self) -> int:
        """How many matches of the longer list have no partner."""
        total = max(self.reference, self.other)
        return round(total * (1 - self.shared))

    def to_dict(self) -> dict[str, object]:
        """JSON-able values."""
        return asdict(self)


def compare_matches(pair: str, reference: Matches, other: Matches, radius: float) -> MatchDifference:
    """Pair the matches of both results by all four coordinates, within `radius` pixels."""
    a = np.concatenate([reference.keypoints0, reference.keypoints1], axis=1).astype(np.float64)
    b = np.concatenate([other.keypoints0, other.keypoints1], axis=1).astype(np.float64)
    p, q = pair_points(a, b, radius)
    gap = np.abs(a[p] - b[q])
    pixels = np.maximum(np.hypot(gap[:, 0], gap[:, 1]), np.hypot(gap[:, 2], gap[:, 3])) if len(p) else np.zeros(0)
    total = max(len(a), len(b))
    scores = np.abs(reference.scores[p] - other.scores[q])
    return MatchDifference(
        pair=pair,
        reference=len(a),
        other=len(b),
        shared=len(p) / total if total else 1.0,
        max_px=float(pixels.max()) if len(p) else 0.0,
        mean_px=float(pixels.mean()) if len(p) else 0.0,
        max_score=float(scores.max()) if len(p) else 0.0,
    )
