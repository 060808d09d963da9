"""Write the decided types into one graph: constants in the type each reader needs, as few casts as that takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, numpy_helper

from matchrt.graph import precision_table as table
from matchrt.graph.edit import Names, attribute, rename_uses, replace_nodes, set_attribute, subgraphs
from matchrt.graph.precision_decide import FLOATS, Decision, Kind
from matchrt.graph.types import FLOAT, HALF, UNKNOWN, TypeTable, input_slot, output_types
from matchrt.model import PrecisionRule


class Rewriter:
    """Rewrites one graph and, through children, the bodies in it. `casts` and `decisions` gather over all of them."""

    def __init__(
        self,
        graph: GraphProto,
        types: TypeTable,
        rules: Sequence[PrecisionRule],
        names: Names,
        parent: Rewriter | None = None,
    ) -> None:
        self.graph, self.types, self.rules, self.names, self.parent = graph, types, rules, names, parent
        inputs = {i.name for i in graph.input}
        self._initialisers = {t.name: t for t in graph.initializer if t.name not in inputs}
        self._variants: dict[tuple[str, int], str] = {}
        self._current: dict[str, int] = {}
        self._alias: dict[str, str] = {}
        self._declared: dict[str, int] = {}
        self._nodes: list[NodeProto] = []
        self.decisions: list[Decision] = []
        self.casts = 0

    def run(self, half_io: Collection[str] = ()) -> None:
        """Rewrite in place."""
        decision = Decision(self.graph, self.types, self.rules, self.constant)
        self.decisions.append(decision)
        for value in self.graph.input:
            if value.name in half_io and value.type.tensor_type.elem_type == FLOAT:
                value.type.tensor_type.elem_type = HALF
            self._current[value.name] = value.type.tensor_type.elem_type
        for output in self.graph.output:
            kind = output.type.tensor_type
            if output.name in half_io and kind.elem_type == FLOAT:
                kind.elem_type = HALF
            self._declared[output.name] = kind.elem_type or self.types[output.name]
        for i, node in enumerate(self.graph.node):
            self._node(i, node, decision)
        replace_nodes(self.graph, self._nodes)
        del self.graph.value_info[:]

    def constant(self, name: str) -> np.ndarray | None:
        """Value of a floating-point initialiser that this graph sees, as float32; None for anything else."""
        scope: Rewriter | None = self
        while scope is not None:
            if name in scope._initialisers:
                tensor = scope._initialisers[name]
                return (
                    numpy_helper.to_array(tensor).astype(np.float32, copy=False) if tensor.data_type in FLOATS else None
                )
            if name in scope.types.own:
                return None
            scope = scope.parent
        return None

    def current(self, name: str) -> int:
        """The type that a tensor has by now."""
        scope: Rewriter | None = self
        while scope is not None:
            name = scope._alias.get(name, name)
            if name in scope._current:
                return scope._current[name]
            if name in scope.types.own:
                return scope.types.own[name]
            scope = scope.parent
        return UNKNOWN

    def _written(self, name: str) -> int:
        """The type of what is called `name` in the graph as written by now: an output of the graph itself, not what carries it inside."""
        scope: Rewriter | None = self
        while scope is not None:
            if name in scope._current:
                return scope._current[name]
            if name in scope.types.own:
                return scope.types.own[name]
            scope = scope.parent
        return UNKNOWN

    def resolve(self, name: str) -> str:
        """The tensor that carries what was called `name`: casts between float types are taken out."""
        scope: Rewriter | None = self
        while scope is not None:
            name = scope._alias.get(name, name)
            scope = scope.parent
        return name

    def typed(self, name: str, wanted: int) -> str:
        """A tensor that holds `name` as `wanted`: itself, a constant of that type, or a cast that all readers share."""
        name = self.resolve(name)
        if self.current(name) == wanted or self.current(name) not in FLOATS:
            return name
        key = (name, wanted)
        if key not in self._variants:
            self._variants[key] = self._constant_variant(name, wanted) or self._cast(name, wanted)
        return self._variants[key]

    def _constant_variant(self, name: str, wanted: int) -> str | None:
        scope: Rewriter | None = self
        while scope is not None and name not in scope._initialisers:
            if name in scope.types.own:
                return None
            scope = scope.parent
        if scope is None:
            return None
        if (name, wanted) not in scope._variants:
            value = numpy_helper.to_array(scope._initialisers[name])
            copied = value.astype(np.float16 if wanted == HALF else np.float32)
            new = self.names.fresh(name + _suffix(wanted))
            scope.graph.initializer.append(numpy_helper.from_array(copied, new))
            scope._variants[(name, wanted)] = new
            scope._current[new] = wanted
        return scope._variants[(name, wanted)]

    def _cast(self, name: str, wanted: int, new: str = "") -> str:
        new = new or self.names.fresh(name + _suffix(wanted))
        self._nodes.append(onnx.helper.make_node("Cast", [name], [new], self.names.fresh("cast_" + new), to=wanted))
        self._current[new] = wanted
        self.casts += 1
        return new

    def _node(self, index: int, original: NodeProto, decision: Decision) -> None:
        kind = decision.kinds[index]
        if original.op_type == "Cast" and kind is Kind.MOVE and self.types[original.input[0]] in FLOATS:
            # Casts to inner tensors are gone already: this one makes an output.
            self._bridge_output(original.output[0], self.resolve(original.input[0]))
            return
        node = NodeProto()
        node.CopyFrom(original)
        bodies = subgraphs(node)
        if bodies:
            self._control_flow(index, node, bodies)
            return
        half = decision.half(index, self.current)
        for i, name in enumerate(node.input):
            if name:
                node.input[i] = self._input(node, i, name, kind, half)
        if half or self._makes_floats(node):
            _set_type(node, HALF if half else FLOAT)
        self._append(node)

    def _input(self, node: NodeProto, i: int, name: str, kind: Kind, half: bool) -> str:
        if self.types[name] not in FLOATS:
            return self.resolve(name)
        if kind is Kind.OTHER and (node.op_type in table.FLEXIBLE or node.op_type == "Cast"):
            return self.resolve(name)
        slot = input_slot(node, i, self.types.version)
        fixed = i in table.FLOAT_SLOTS.get(node.op_type, ()) or slot is None or HALF not in slot[1]
        if kind is Kind.OTHER:
            return self.typed(name, self.types[name])
        return self.typed(name, FLOAT if fixed or not half else HALF)

    def _makes_floats(self, node: NodeProto) -> bool:
        return any(o and self.types[o] in FLOATS for o in node.output)

    def _append(self, node: NodeProto) -> None:
        codes = [self._written(n) if n else UNKNOWN for n in node.input]
        bridged = []
        for i, code in enumerate(output_types(node, codes, self.types.version)):
            name = node.output[i]
            code = self.types[name] if code == UNKNOWN else code
            if code in FLOATS and self._declared.get(name, code) != code:
                node.output[i] = self.names.fresh(name + _suffix(code))
                bridged.append((name, node.output[i]))
            if name:
                self._current[node.output[i]] = code
        self._nodes.append(node)
        for name, source in bridged:
            self._bridge_output(name, source)

    def _control_flow(self, index: int, node: NodeProto, bodies: list[GraphProto]) -> None:
        """Bodies are rewritten inside; what passes their border keeps its type."""
        entry = list(bodies[0].input) if node.op_type in ("Loop", "Scan") else []
        for i, name in enumerate(node.input):
            if name:
                node.input[i] = self.typed(name, entry[i].type.tensor_type.elem_type if entry else self.types[name])
        for body, types in zip(bodies, self.types.bodies[index], strict=True):
            child = Rewriter(body, types, self.rules, self.names, self)
            child.run()
            self.casts += child.casts
            self.decisions += child.decisions
        for name in node.output:
            if name:
                self._current[name] = self.types[name]
        self._nodes.append(node)

    def _bridge_output(self, name: str, source: str) -> None:
        """Make the graph's output `name`, in its declared type, of `source`; readers inside go on with either."""
        wanted = self._declared[name]
        self._alias[name] = source
        self._current[name] = wanted
        key = (source, wanted)
        if self.current(source) != wanted and key not in self._variants:
            self._cast(source, wanted, name)
            self._variants[key] = name
        else:
            node = onnx.helper.make_node(
                "Identity", [self._variants.get(key, source)], [name], self.names.fresh("name_" + name)
            )
            self._nodes.append(node)


def take_out_float_casts(types: TypeTable) -> None:
    """Remove casts between float32 and float16, in place; a rewrite places them anew. Casts that make a graph's output stay."""
    outputs = {o.name for o in types.graph.output}
    kept, sources = [], {}
    for node in types.graph.node:
        between = node.op_type == "Cast" and types[node.input[0]] in FLOATS and attribute(node, "to") in FLOATS
        if between and node.output[0] not in outputs:
            sources[node.output[0]] = node.input[0]
        else:
            if between:
                node.name = ""  # its successor may have the name
            kept.append(node)
    rename_uses(types.graph, sources)
    for bodies in types.bodies.values():
        for body in bodies:
            take_out_float_casts(body)
    if len(kept) != len(types.graph.node):
        replace_nodes(types.graph, kept)


def _suffix(code: int) -> str:
    return "_half" if code == HALF else "_float"


def _set_type(node: NodeProto, code: int) -> None:
    """Make a node that says its result's type in an attribute say `code`."""
    if node.op_type == "Cast":
        set_attribute(node, "to", code)
    elif node.op_type == "ConstantOfShape":
        value = attribute(node, "value")
        number = numpy_helper.to_array(value) if value is not None else np.zeros(1, np.float32)
        set_attribute(node, "value", numpy_helper.from_array(number.astype(np.float16 if code == HALF else np.float32)))
    elif node.op_type == "EyeLike":
        set_attribute(node, "dtype", code)
