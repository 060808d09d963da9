"""Say before a long build what a target will refuse: node, operator, limit and remedy.

The table `limits.json` holds the rules, by backend and version range; the checks below are the few questions it asks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from matchrt.errors import BackendError
from matchrt.graph.attention import find_attention
from matchrt.graph.edit import INT32_MAX, View, all_graphs, attribute, opset
from matchrt.graph.types import FLOAT, HALF, INT64, Shape, TypeTable, shapes, type_problems
from matchrt.graph.versions import in_range, version_tuple
from matchrt.model import Target

Severity = Literal["error", "warning", "note"]
_DEFAULTS: dict[str, Any] = {
    "sorted": 1,
    "antialias": 0,
    "keep_aspect_ratio_policy": "stretch",
    "reduction": "none",
    "start": 0,
}
_UNTYPED = (TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64, TensorProto.STRING, TensorProto.COMPLEX64,
            TensorProto.COMPLEX128)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that a target refuses (`error`), changes silently (`warning`) or that costs speed (`note`)."""

    node: str
    operator: str
    limit: str
    remedy: str
    severity: Severity

    def __str__(self) -> str:
        where = f"{self.operator} {self.node!r}" if self.operator else self.node or "the graph"
        return f"{where}: {self.limit}; {self.remedy}"


@dataclass(frozen=True)
class Rule:
    """One row of the table. `where` maps a backend to a version range such as `>=8.6,<10`; empty means every version."""

    operators: tuple[str, ...]
    check: str
    params: Mapping[str, Any]
    where: Mapping[str, str]
    limit: str
    remedy: str
    severity: Severity

    def applies(self, target: Target) -> bool:
        """Whether the rule speaks of `target`; an empty version means the newest."""
        return target.backend in self.where and in_range(version_tuple(target.version), self.where[target.backend])


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    """The table."""
    rows = json.loads(resources.files("matchrt.graph").joinpath("limits.json").read_text("utf-8"))
    return tuple(Rule(**{**row, "operators": tuple(row["operators"])}) for row in rows)


@dataclass(frozen=True)
class _Look:
    """What a check sees: one graph, and what is known of its tensors."""

    view: View
    sizes: Mapping[str, Shape]


def lint(model: ModelProto, target: Target) -> list[Finding]:
    """Findings for `model` on `target` (its backend and version; an empty version means the newest known), in graph order."""
    ours = [r for r in rules() if r.applies(target)]
    found = [_finding(r, text, "") for r in ours if not r.operators for text in _MODEL_CHECKS[r.check](model, r.params)]
    sizes = shapes(model)
    by_operator: dict[str, list[Rule]] = {}
    for rule in ours:
        for operator in rule.operators:
            by_operator.setdefault(operator, []).append(rule)
    for graph in all_graphs(model.graph):
        look = _Look(View(graph), sizes)
        for node in graph.node:
            for rule in by_operator.get(node.op_type, []) if node.domain in ("", "ai.onnx") else []:
                if _NODE_CHECKS[rule.check](node, look, rule.params):
                    found.append(_finding(rule, node.name or next(iter(node.output), ""), node.op_type))
    return found


def require_buildable(model: ModelProto, target: Target) -> list[Finding]:
    """`lint`; raises `BackendError` that lists every finding of severity `error`, returns the others."""
    findings = lint(model, target)
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        version = f" {target.version}" if target.version else ""
        lines = "\n  ".join(str(e) for e in errors)
        raise BackendError(f"{target.backend}{version} cannot build this graph:\n  {lines}", hint=errors[0].remedy)
    return findings


def _finding(rule: Rule, node: str, operator: str) -> Finding:
    return Finding(node, operator, rule.limit, rule.remedy, rule.severity)


def _value(node: NodeProto, name: str) -> Any:
    value = attribute(node, name, _DEFAULTS.get(name))
    return value.decode() if isinstance(value, bytes) else value


def _constant_above(node: NodeProto, look: _Look, params: Mapping[str, Any]) -> bool:
    value = look.view.array(node.input[params["input"]]) if len(node.input) > params["input"] else None
    return value is not None and value.size > 0 and bool(value.max() > params["value"])


def _dilated(node: NodeProto, look: _Look, params: Mapping[str, Any]) -> bool:
    return any(d != 1 for d in attribute(node, "dilations", []))


def _second_output(node: NodeProto, look: _Look, params: Mapping[str, Any]) -> bool:
    return any(o and (o in look.view.consumers or o in look.view.outputs) for o in node.output[1:])


def _rank(node: NodeProto, look: _Look, params: Mapping[str, Any]) -> int:
    return len(look.sizes.get(node.input[params["input"]], ()))


def _einsum_ellipsis(node: NodeProto, look: _Look, params: Mapping[str, Any]) -> bool:
    terms = str(_value(node, "equation")).replace(" ", "").split("->")[0].split(",")
    return any("..." in t or len(set(t)) < len(t) for t in terms)


def _dynamic(node: NodeProto, look: _Look, params: Mapping[str, Any]) -> bool:
    shape = look.sizes.get(node.input[params["input"]])
    return shape is None or not all(isinstance(s, int) for s in shape)


_NODE_CHECKS: dict[str, Callable[[NodeProto, _Look, Mapping[str, Any]], bool]] = {
    "always": lambda node, look, params: True,
    "constant_above": _constant_above,
    "attribute_not": lambda node, look, params: _value(node, params["name"]) != params["value"],
    "attribute_is": lambda node, look, params: _value(node, params["name"]) == params["value"],
    "dilated": _dilated,
    "second_output": _second_output,
    "rank_above": lambda node, look, params: _rank(node, look, params) > params["value"],
    "rank_is": lambda node, look, params: _rank(node, look, params) == params["value"],
    "einsum_ellipsis": _einsum_ellipsis,
    "dynamic": _dynamic,
}


def _foreign(model: ModelProto, params: Mapping[str, Any]) -> Iterator[str]:
    own = {(f.domain, f.name) for f in model.functions}
    for graph in all_graphs(model.graph):
        for node in graph.node:
            if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) not in own:
                yield f"{node.domain}:{node.op_type} {node.name!r}"


def _with_type(*codes: int) -> Callable[[ModelProto, Mapping[str, Any]], Iterator[str]]:
    def check(model: ModelProto, params: Mapping[str, Any]) -> Iterator[str]:
        found = [n for n, code in TypeTable(model.graph, opset(model)).own.items() if code in codes]
        if found:
            yield f"tensor {found[0]!r}" + (f" and {len(found) - 1} more" if len(found) > 1 else "")

    return check


def _int64_input(model: ModelProto, params: Mapping[str, Any]) -> Iterator[str]:
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == INT64:
            yield f"{value.name!r}"


def _int64_constant(model: ModelProto, params: Mapping[str, Any]) -> Iterator[str]:
    for name, tensor in View(model.graph).constants.items():
        if tensor.data_type == INT64:
            value = numpy_helper.to_array(tensor)
            if value.size and np.abs(value.astype(np.float64)).max() > INT32_MAX + 1:
                yield f"constant {name!r}"


def _mixed_types(model: ModelProto, params: Mapping[str, Any]) -> Iterator[str]:
    yield from type_problems(model)


def _half_graph(model: ModelProto, params: Mapping[str, Any]) -> Iterator[str]:
    table = TypeTable(model.graph, opset(model))
    if {FLOAT, HALF} <= set(table.own.values()):
        yield "the graph mixes float16 and float32"


def _external(model: ModelProto, params: Mapping[str, Any]) -> Iterator[str]:
    if any(onnx.external_data_helper.uses_external_data(t) for t in _initialisers(model.graph)):
        yield "the graph"


def _initialisers(graph: GraphProto) -> Iterator[TensorProto]:
    for part in all_graphs(graph):
        yield from part.initializer


def _odd_attention(model: ModelProto, params: Mapping[str, Any]) -> Iterator[str]:
    """Attention over an odd number of keys, joined by that number."""
    sizes = shapes(model)
    last = (sizes.get(a.softmax.output[0], (None,))[-1] for a in find_attention(model))
    counts = Counter(n for n in last if isinstance(n, int) and n % 2)
    yield from (f"attention over {keys} keys ({count} times)" for keys, count in counts.items())


_MODEL_CHECKS: dict[str, Callable[[ModelProto, Mapping[str, Any]], Iterator[str]]] = {
    "foreign_domain": _foreign,
    "double": _with_type(TensorProto.DOUBLE),
    "unsupported_type": _with_type(*_UNTYPED),
    "int64_input": _int64_input,
    "int64_constant": _int64_constant,
    "mixed_types": _mixed_types,
    "half_graph": _half_graph,
    "external_data": _external,
    "odd_attention": _odd_attention,
    "opset_above": lambda model, params: iter([f"opset {opset(model)}"] if opset(model) > params["value"] else []),
    "opset_below": lambda model, params: iter([f"opset {opset(model)}"] if opset(model) < params["value"] else []),
}
