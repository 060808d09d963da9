"""Prepare a bundle's graph for one target: passes in order, then the precision."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from matchrt.graph.precision import PrecisionRecord
from matchrt.model import GraphPass, PrecisionRule, Target


@dataclass(frozen=True)
class PreparedGraph:
    """A graph made for one target.

    `applied` names the passes in the order they ran; `notes` are sentences for the build report. `precision` is None for fp32.
    """

    model: onnx.ModelProto
    applied: tuple[str, ...]
    notes: tuple[str, ...]
    precision: PrecisionRecord | None = None


def prepare(
    model: onnx.ModelProto,
    target: Target,
    *,
    network: str = "",
    freeze: Mapping[str, int] | None = None,
    rules: Sequence[PrecisionRule] = (),
    passes: Sequence[GraphPass] = (),
    half_io: Collection[str] = (),
) -> PreparedGraph:
    """`model` prepared for `target`; the argument is not changed.

    `freeze` gives dynamic axes fixed sizes by name. `rules` are the matcher's precision rules, `passes` its own passes (run before
    the precision). `half_io` names graph inputs and outputs that are handed over in float16 under a lower precision.
    Under TensorRT 8 and precision fp16 the graph stays float32 and `precision.kept` lists what layer constraints must keep.
    Raises `ExportError` naming the pass that failed, `UsageError` for an unknown axis or precision.
    """
    raise NotImplementedError
