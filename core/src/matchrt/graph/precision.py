"""Rewrite a float32 graph to float16 so that every tensor's type is written in the graph (strong typing)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx
from onnx import inliner

from matchrt.errors import ExportError, PluginError, UsageError
from matchrt.graph.edit import Names, all_graphs, copy_model, lift_constants, opset, remove_dead
from matchrt.graph.fold import join_constants
from matchrt.graph.precision_decide import Decision, Kind
from matchrt.graph.precision_rewrite import Rewriter, take_out_float_casts
from matchrt.graph.types import FLOAT, TypeTable, type_problems
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

    def reasons(self) -> dict[str, int]:
        """How many nodes each reason keeps; the detail after a colon is left out."""
        counts: dict[str, int] = {}
        for kept in self.kept:
            key = kept.reason.split(":")[0]
            counts[key] = counts.get(key, 0) + 1
        return counts


def to_half(
    model: onnx.ModelProto,
    rules: Sequence[PrecisionRule] = (),
    *,
    network: str = "",
    half_io: Collection[str] = (),
) -> tuple[onnx.ModelProto, PrecisionRecord]:
    """A copy of `model` that computes in float16 except where `rules` and the built-in table keep float32.

    Graph inputs and outputs keep their types, except those named in `half_io`. Rules of other networks than `network` are left
    out. Casts between float types that the graph already has are placed anew. Idempotent.
    Raises `UsageError` for an unknown name in `half_io`, `PluginError` for a pattern that is no regular expression, `ExportError`
    if the result breaks a schema (an error of this module).
    """
    changed = _ready(model)
    _check_io(changed, half_io)
    rewriter = _rewriter(changed, rules, network)
    rewriter.run(half_io)
    remove_dead(changed.graph)
    join_constants(changed.graph)  # float32 constants that differ may be one number in half
    remove_dead(changed.graph)
    problems = type_problems(changed)
    if problems:
        raise ExportError("the half-precision rewrite broke types:\n  " + "\n  ".join(problems[:10]))
    return changed, _record(rewriter.decisions, rewriter.casts)


def decide(model: onnx.ModelProto, rules: Sequence[PrecisionRule] = (), *, network: str = "") -> PrecisionRecord:
    """What `to_half` would keep, without rewriting: for backends that take constraints by layer name (TensorRT 8).

    Every node must have a name; `prepare` sees to it.
    """
    changed = _ready(model)
    rewriter = _rewriter(changed, rules, network)
    decisions = [Decision(changed.graph, rewriter.types, rewriter.rules, rewriter.constant)]
    return _record(decisions, 0)


def name_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every node a name of its own, in place: constraints and rules go by name."""
    names = Names(model)
    seen: set[str] = set()
    for graph in all_graphs(model.graph):
        for node in graph.node:
            if not node.name or node.name in seen:
                node.name = names.fresh(node.name or f"{node.op_type}_{next((o for o in node.output if o), 'none')}")
            seen.add(node.name)
    return model


def _ready(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = inliner.inline_local_functions(model) if model.functions else copy_model(model)
    lift_constants(changed.graph)
    remove_dead(changed.graph)
    take_out_float_casts(TypeTable(changed.graph, opset(changed)))
    return name_nodes(changed)


def _rewriter(model: onnx.ModelProto, rules: Sequence[PrecisionRule], network: str) -> Rewriter:
    ours = [r for r in rules if r.networks is None or not network or network in r.networks]
    for rule in ours:
        try:
            re.compile(rule.pattern)
        except re.error as error:
            raise PluginError(f"precision rule {rule.pattern!r} is no regular expression: {error}") from error
    return Rewriter(model.graph, TypeTable(model.graph, opset(model)), ours, Names(model))


def _check_io(model: onnx.ModelProto, half_io: Collection[str]) -> None:
    known = {v.name for v in (*model.graph.input, *model.graph.output) if v.type.tensor_type.elem_type == FLOAT}
    unknown = sorted(set(half_io) - known)
    if unknown:
        raise UsageError(f"no float32 input or output is called {unknown[0]!r}; there are: {', '.join(sorted(known))}")


def _record(decisions: Sequence[Decision], casts: int) -> PrecisionRecord:
    kept, converted = [], 0
    for decision in decisions:
        for i, kind in enumerate(decision.kinds):
            name, operator = decision.nodes[i]
            if kind is Kind.KEEP and operator != "Cast":
                kept.append(KeptNode(name, operator, decision.reasons.get(i, "")))
            converted += kind is Kind.HALF
    return PrecisionRecord(tuple(kept), converted, casts)
