"""How many pairs run together: as many neighbours of equal shapes as the bundle's axes and its engines take."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np

from matchrt.backends import Session
from matchrt.bundle import BundleManifest
from matchrt.errors import BackendError
from matchrt.images.memory import empty
from matchrt.runtime.steps import Tensors


def batch_limits(manifest: BundleManifest, sessions: Mapping[str, Session]) -> tuple[int, int]:
    """Fewest and most pairs that every network takes in one run: the bundle's own axes, narrowed by what engines were built for.

    (1, 1) where an input has no dynamic batch axis. Raises `BackendError` where engines have no number of pairs in common.
    """
    axes = {a.name: a for a in manifest.axes}
    fewest, most = 1, sys.maxsize
    for network in manifest.networks:
        built = getattr(sessions[network.name], "batch_bounds", {})
        for spec in network.inputs:
            axis = axes.get(str(spec.shape[0])) if spec.shape and spec.axes[0] == "batch" else None
            if axis is None:
                return 1, 1
            low, high = built.get(spec.name, (axis.min, axis.max))
            fewest, most = max(fewest, low), min(most, high)
    if fewest > most:
        raise BackendError(
            f"the engines take no common number of pairs: one needs at least {fewest}, one at most {most}",
            hint="build all of them with one `matchrt build --batch N`",
        )
    return fewest, most


def batches(pairs: Sequence[Tensors], most: int) -> Iterator[list[Tensors]]:
    """Neighbours whose tensors have equal shapes, at most `most` at a time, in order."""
    for _, group in groupby(pairs, key=lambda tensors: {n: v.shape for n, v in tensors.items()}):
        alike = list(group)
        for start in range(0, len(alike), most):
            yield alike[start : start + most]


def joined(pairs: Sequence[Tensors], fewest: int = 1) -> Tensors:
    """The pairs joined along their leading axis; up to `fewest`, which an engine of one fixed batch needs, the last one is repeated."""
    filled = [*pairs, *[pairs[-1]] * (fewest - len(pairs))]
    return {name: _concatenated([p[name] for p in filled]) for name in pairs[0]}


def _concatenated(arrays: Sequence[np.ndarray]) -> np.ndarray:
    shape = sum(len(a) for a in arrays), *arrays[0].shape[1:]
    return np.concatenate(arrays, out=empty(shape, arrays[0].dtype))
