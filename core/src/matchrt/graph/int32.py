"""INT64 to INT32 where no value can leave its range, and slice ends that mean "to the end" as ends that fit.

TensorRT 8.6 computes in INT32 and warns; newer ones carry INT64 through at twice the size. Shape arithmetic that ends in an input which
ONNX wants as INT64 stays; so do graph inputs and outputs.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from matchrt.graph.edit import (
    INT32_MAX,
    Names,
    View,
    attribute,
    copy_model,
    lift_constants,
    opset,
    read_names,
    remove_dead,
    replace_nodes,
    set_attribute,
    subgraphs,
)
from matchrt.graph.intervals import intervals
from matchrt.graph.types import INT32, INT64, TypeTable, input_slot, output_types, same_type, shapes
from matchrt.model import GraphPass, Stage

CONVERTED = frozenset(
    ("Gather", "GatherElements", "ScatterElements", "Slice", "Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Neg", "Abs", "Where",
     "Concat", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Expand", "Tile", "Flatten", "Identity", "Split", "Equal",
     "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "ReduceMax", "ReduceMin", "Pad")
)  # fmt: skip
"""Operators that every runtime we know computes in INT32 as in INT64.

Range is not among them: where its limit comes from Shape, onnxruntime's shape inference takes that for INT64 whatever casts follow.
"""


def to_int32(model: ModelProto) -> ModelProto:
    """A copy with INT64 tensors of the main graph made INT32 where that is exact. Results are equal."""
    changed = copy_model(model)
    lift_constants(changed.graph)
    _clamp_slices(changed)
    _Int32(changed).run()
    remove_dead(changed.graph)
    return changed


def _clamp_slices(model: ModelProto) -> None:
    """Slice bounds beyond INT32 become the axis' own size, or INT32's limit where that is not known."""
    view, sizes, names = View(model.graph), shapes(model), Names(model)
    for node in model.graph.node:
        if node.op_type != "Slice":
            continue
        starts = view.array(node.input[1])
        axes = view.array(node.input[3]) if len(node.input) > 3 and node.input[3] else None
        if axes is None and starts is not None:
            axes = np.arange(starts.size)
        for i in (1, 2):
            bound = view.array(node.input[i])
            if bound is None or axes is None or np.abs(bound.astype(np.float64)).max(initial=0) <= INT32_MAX:
                continue
            shape = sizes.get(node.input[0], ())
            limits = [shape[a] if -len(shape) <= a < len(shape) else None for a in axes]
            clamped = [_clamp(int(b), s if isinstance(s, int) else None) for b, s in zip(bound, limits, strict=True)]
            name = names.fresh(f"{node.input[i]}_clamped")
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(clamped, bound.dtype), name))
            node.input[i] = name


def _clamp(value: int, size: int | None) -> int:
    if abs(value) <= INT32_MAX:
        return value
    limit = INT32_MAX if size is None else size
    return limit if value > 0 else -limit - (1 if size is not None else 0)


class _Int32:
    """A tensor may become INT32 if its interval fits; it does where a reader gains by it and none needs INT64."""

    def __init__(self, model: ModelProto) -> None:
        self.model, self.graph, self.version = model, model.graph, opset(model)
        self.types, self.names = TypeTable(model.graph, self.version), Names(model)
        self.view = View(model.graph)
        known = intervals(model.graph, self.types, shapes(model))
        self.fits = {n for n, (low, high) in known.items() if low >= -INT32_MAX - 1 and high <= INT32_MAX}
        self.constants = {t.name: t for t in model.graph.initializer if t.data_type == INT64}
        self.kept = self._needed_as_int64()
        self.narrow: dict[str, str] = {}
        self.now: dict[str, int] = {}
        self.nodes: list[NodeProto] = []

    def run(self) -> None:
        for node in list(self.graph.node):
            if node.op_type in CONVERTED and not subgraphs(node):
                self._convert(node)
            elif node.op_type == "Cast" and attribute(node, "to") == INT64 and self._free(node.output[0]):
                set_attribute(node, "to", INT32)
                self.now[node.output[0]] = INT32
            self._widen(node)
            self.nodes.append(node)
        replace_nodes(self.graph, self.nodes)
        del self.graph.value_info[:]

    def _free(self, name: str) -> bool:
        return name in self.fits and name not in self.kept

    def _needed_as_int64(self) -> set[str]:
        """Tensors that reach a slot which takes nothing but INT64, a graph output or a body, through integer nodes."""
        kept = set(self.view.outputs)
        for node in reversed(self.graph.node):
            outer = {n for b in subgraphs(node) for m in b.node for n in read_names(m)}
            outer |= {o.name for b in subgraphs(node) for o in b.output}
            kept |= outer
            for members in self._groups(node, every=True):
                passes_on = any(o in kept or self._wide(o) for o in node.output if o)
                bound = passes_on and same_type(node, members[0], self.version)
                slot = input_slot(node, members[0], self.version)
                foreign = slot is None or INT32 not in slot[1] or bool(subgraphs(node))
                foreign |= node.op_type not in CONVERTED and node.op_type != "Cast"
                if foreign or bound or any(self._wide(node.input[i]) for i in members):
                    kept.update(node.input[i] for i in members if node.input[i] not in self.constants)
        return kept

    def _wide(self, name: str) -> bool:
        """Whether a tensor is INT64 and may leave INT32's range."""
        return self.types[name] == INT64 and name not in self.fits

    def _groups(self, node: NodeProto, *, every: bool = False) -> list[list[int]]:
        """Positions of INT64 inputs that must have one type, by type variable; `every`: also those that take only INT64."""
        groups: dict[str, list[int]] = {}
        for i, name in enumerate(node.input):
            slot = input_slot(node, i, self.version) if name else None
            if name and self.types[name] == INT64 and (every or (slot is not None and INT32 in slot[1])):
                groups.setdefault(slot[0] if slot else str(i), []).append(i)
        return list(groups.values())

    def _convert(self, node: NodeProto) -> None:
        for members in self._groups(node):
            if self._may(node, members):
                for i in members:
                    node.input[i] = self._narrowed(node.input[i])
        codes = [self.now.get(n, self.types[n]) if n else 0 for n in node.input]
        for name, code in zip(node.output, output_types(node, codes, self.version), strict=True):
            if code == INT32 and self.types[name] == INT64:
                self.now[name] = INT32

    def _may(self, node: NodeProto, members: list[int]) -> bool:
        if not all(self._readable(node.input[i]) for i in members):
            return False
        bound = same_type(node, members[0], self.version)
        if bound and any(self.types[o] == INT64 and not self._free(o) for o in node.output if o):
            return False
        return bound or all(node.input[i] in self.constants or self._free(node.input[i]) for i in members)

    def _readable(self, name: str) -> bool:
        """Whether an INT32 copy of the tensor exists or may be made: its values fit, and it is no graph input."""
        return self.now.get(name) == INT32 or name in self.fits

    def _narrowed(self, name: str) -> str:
        if self.now.get(name) == INT32:
            return name
        if name not in self.narrow:
            new = self.names.fresh(f"{name}_int32")
            if name in self.constants:
                value = numpy_helper.to_array(self.constants[name]).astype(np.int32)
                self.graph.initializer.append(numpy_helper.from_array(value, new))
            else:
                self.nodes.append(
                    onnx.helper.make_node("Cast", [name], [new], self.names.fresh("cast_" + new), to=INT32)
                )
            self.now[new] = INT32
            self.narrow[name] = new
        return self.narrow[name]

    def _widen(self, node: NodeProto) -> None:
        """Readers that stayed INT64 get a wide copy of what became INT32. There are few: such tensors were kept."""
        for i, name in enumerate(node.input):
            if self.now.get(name) != INT32 or self.types[name] != INT64:
                continue
            slot = input_slot(node, i, self.version)
            mixed = any(
                self.now.get(n, self.types[n]) == INT64 and (input_slot(node, k, self.version) or ("",))[0] == slot[0]
                for k, n in enumerate(node.input)
                if slot and n
            )
            if slot is None or INT32 not in slot[1] or mixed:
                wide = self.names.fresh(f"{name}_int64")
                self.nodes.append(
                    onnx.helper.make_node("Cast", [name], [wide], self.names.fresh("cast_" + wide), to=INT64)
                )
                self.now[wide] = INT64
                node.input[i] = wide


TO_INT32 = GraphPass(
    name="int64-to-int32",
    reason="builders compute in INT32 or carry INT64 at twice the size; slice ends of 2^63 - 1 cause clamp warnings",
    run=to_int32,
    stage=Stage.PREPARE,
)
