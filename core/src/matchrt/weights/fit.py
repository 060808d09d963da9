"""How well a file fits each matcher: by names after that matcher's own rules, with equal shapes, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from matchrt.errors import WeightsError
from matchrt.weights.apply import PRIMARY, remap
from matchrt.weights.rules import Rule

WORTH_NAMING = 0.5
"""The least share at which another matcher is suggested."""


@dataclass(frozen=True)
class Candidate:
    """A matcher's variant: its rules, and the shapes of its network's parameters and persistent buffers by name."""

    matcher: str
    variant: str
    rules: Sequence[Rule]
    parameters: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Fit:
    """How a file's names compare with a candidate's, after the candidate's rules.

    `matched` names are in both with equal shapes; `misshapen` in both with different ones; `unexpected` only in the
    file; `missing` only in the network, without the `backfillable`, which a second file provides. `share` is
    `matched` over all of the four but the last. `problem` is the rules' complaint, if they could not be applied.
    `sources` are the roles of the second files that provide the backfillable names.
    """

    matcher: str
    variant: str
    matched: int
    misshapen: int
    unexpected: int
    missing: int
    backfillable: int
    dropped: int
    problem: str = ""
    sources: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The fraction of names that fit, 0 to 1."""
        total = self.matched + self.misshapen + self.unexpected + self.missing
        return self.matched / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-able data."""
        return {
            "matcher": self.matcher,
            "variant": self.variant,
            "share": round(self.share, 4),
            "matched": self.matched,
            "misshapen": self.misshapen,
            "unexpected": self.unexpected,
            "missing": self.missing,
            "backfillable": self.backfillable,
            "sources": list(self.sources),
            "dropped": self.dropped,
            "problem": self.problem,
        }


def fit(checkpoint_shapes: Mapping[str, Sequence[int]], candidates: Iterable[Candidate]) -> tuple[Fit, ...]:
    """Rank candidates by share, best first (then by names matched, then by name). Loads no data.

    `checkpoint_shapes` maps canonical names (as `readers` and `describe` give them) to shapes.
    """
    tensors = {name: torch.empty(tuple(shape), device="meta") for name, shape in checkpoint_shapes.items()}
    fits = [_fit(tensors, candidate) for candidate in candidates]
    return tuple(sorted(fits, key=lambda f: (-f.share, -f.matched, f.matcher, f.variant)))


def _fit(tensors: Mapping[str, torch.Tensor], candidate: Candidate) -> Fit:
    wanted = {name: tuple(shape) for name, shape in candidate.parameters.items()}
    try:
        remapped = remap({PRIMARY: ("the file", tensors, {})}, candidate.rules)
    except WeightsError as error:
        return Fit(candidate.matcher, candidate.variant, 0, 0, len(tensors), len(wanted), 0, 0, error.message)
    found = {name: tuple(tensor.shape) for name, tensor in remapped.tensors.items()}
    both = wanted.keys() & found.keys()
    matched = sum(wanted[name] == found[name] for name in both)
    lacking = wanted.keys() - found.keys()
    fillers = [re.compile(pattern) for _, pattern in remapped.absent]
    backfillable = sum(any(filler.fullmatch(name) for filler in fillers) for name in lacking)
    sources = [role for (role, _), f in zip(remapped.absent, fillers, strict=True) if any(map(f.fullmatch, lacking))]
    return Fit(
        matcher=candidate.matcher,
        variant=candidate.variant,
        matched=matched,
        misshapen=len(both) - matched,
        unexpected=len(found) - len(both),
        missing=len(lacking) - backfillable,
        backfillable=backfillable,
        dropped=len(remapped.dropped),
        sources=tuple(sources),
    )


def better_fit(fits: Sequence[Fit], matcher: str, variant: str) -> str | None:
    """Return one sentence that names the matcher which the file fits better than `matcher`/`variant`, or None."""
    own = next((f.share for f in fits if (f.matcher, f.variant) == (matcher, variant)), 0.0)
    best = fits[0] if fits else None
    if best is None or (best.matcher, best.variant) == (matcher, variant):
        return None
    if best.share <= own or best.share < WORTH_NAMING:
        return None
    return (
        f"This file fits {best.matcher} ({best.variant}) better: {best.share:.1%} of the names and shapes, "
        f"against {own:.1%} for {matcher} ({variant})."
    )
