"""Rewrite a float32 graph to float16 so that every tensor's type is written in the graph (strong typing)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

from matchrt.model import PrecisionRule


@dataclass(frozen=True)
class KeptNode:
    """A node that stays in float32, and why."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class PrecisionRecord:
    """What `to_half` did: nodes kept in float32, how many nodes compute in half, and how many casts stand between."""

    kept: tuple[KeptNode, ...]
    converted: int
    casts: int


def to_half(
    model: onnx.ModelProto,
    rules: Sequence[PrecisionRule] = (),
    *,
    network: str = "",
    half_io: Collection[str] = (),
) -> tuple[onnx.ModelProto, PrecisionRecord]:
    """A copy of `model` that computes in float16 except where `rules` and the built-in table keep float32.

    Graph inputs and outputs keep their types, except those named in `half_io`. Idempotent.
    """
    raise NotImplementedError


def decide(model: onnx.ModelProto, rules: Sequence[PrecisionRule] = (), *, network: str = "") -> PrecisionRecord:
    """What `to_half` would keep, without rewriting: for backends that take constraints by layer name (TensorRT 8)."""
    raise NotImplementedError
