"""Prepare a bundle's graph for one target: passes in order, then the precision."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx

from matchrt.errors import UsageError
from matchrt.graph.attention import FAST_ATTENTION
from matchrt.graph.edit import copy_model, opset
from matchrt.graph.fold import FOLD
from matchrt.graph.freeze import freeze as freeze_axes
from matchrt.graph.int32 import TO_INT32
from matchrt.graph.layer_norm import DECOMPOSE_LAYER_NORM, FUSE_LAYER_NORM, OPERATOR_SINCE
from matchrt.graph.opset import TO_OPSET_17
from matchrt.graph.passes import run_passes
from matchrt.graph.precision import PrecisionRecord, decide, name_nodes, to_half
from matchrt.graph.types import refresh_value_info
from matchrt.graph.versions import constrains_layers, version_tuple
from matchrt.graph.whole_shapes import WHOLE_SHAPES
from matchrt.model import GraphPass, PrecisionRule, Stage, Target

PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class PreparedGraph:
    """A graph made for one target.

    `applied` names the passes in the order they ran; `notes` are sentences for the build report. `precision` is None for fp32.
    """

    model: onnx.ModelProto
    applied: tuple[str, ...]
    notes: tuple[str, ...]
    precision: PrecisionRecord | None = None

    @property
    def half(self) -> bool:
        """Whether anything computes in float16. If not, an engine is built in float32 outright: constraints on what computes would leave
        a builder free to round what is only moved, chosen or constant.
        """
        return self.precision is not None and self.precision.converted > 0


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

    `freeze` gives dynamic axes fixed sizes by name. `rules` are the matcher's precision rules, `passes` its own passes (those of
    stage PREPARE run before the precision). `half_io` names graph inputs and outputs handed over in float16 under fp16.
    Under TensorRT 8 and precision fp16 the graph stays float32 and `precision.kept` lists what layer constraints must keep.
    For precision `mixed`, prepare in fp32 and call `search_mixed`. Raises `ExportError` naming the pass that failed, `UsageError`
    for an unknown axis or precision.
    """
    if target.precision not in PRECISIONS:
        raise UsageError(
            f"a graph cannot be prepared in precision {target.precision!r}", hint=f"choose from {', '.join(PRECISIONS)}"
        )
    notes: list[str] = []
    prepared = freeze_axes(model, freeze) if freeze else copy_model(model)
    own = [p for p in passes if p.stage is Stage.PREPARE and (p.networks is None or network in p.networks)]
    steps = target_passes(prepared, target, own)
    prepared = run_passes(name_nodes(prepared), steps, network)
    applied = [*(["freeze"] if freeze else []), *(s.name for s in steps)]
    record: PrecisionRecord | None = None
    if target.precision == "fp16":
        if constrains_layers(target):
            record = decide(prepared, rules, network=network)
            way = (
                "takes the precision as layer constraints" if record.converted else "builds in float32 what has no half"
            )
            notes.append(f"TensorRT 8 {way}: the graph stays float32")
        else:
            prepared, record = to_half(prepared, rules, network=network, half_io=half_io)
            applied.append("to-half")
        notes.append(
            f"float16: {record.converted} nodes compute in half, {len(record.kept)} keep float32, {record.casts} casts"
        )
    refresh_value_info(prepared)
    return PreparedGraph(prepared, tuple(applied), tuple(notes), record)


def target_passes(model: onnx.ModelProto, target: Target, extra: Sequence[GraphPass] = ()) -> list[GraphPass]:
    """Core's passes for `target` with a matcher's own between folding and the final clean-up."""
    norm = [FUSE_LAYER_NORM] if opset(model) >= OPERATOR_SINCE else []
    version = version_tuple(target.version)
    if target.backend == "tensorrt" and version and version < (8, 6):
        norm = [DECOMPOSE_LAYER_NORM]
    integers = [TO_INT32] if target.backend in ("tensorrt", "tensorrt_rtx") else []
    older = [TO_OPSET_17, WHOLE_SHAPES] if constrains_layers(target) and version < (9,) else []
    return [FOLD, *norm, FAST_ATTENTION, *extra, *integers, *([FOLD] if extra or integers else []), *older]
