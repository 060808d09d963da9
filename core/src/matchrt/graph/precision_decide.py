"""Decide for every node of one graph whether it computes in half, keeps float32, or just moves what it is given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from matchrt.graph import precision_table as table
from matchrt.graph.edit import View, attribute, read_names, subgraphs
from matchrt.graph.types import FLOAT, HALF, TypeTable, input_slot
from matchrt.model import PrecisionRule

FLOATS, BOOL = (FLOAT, HALF), TensorProto.BOOL
Constants = Callable[[str], "np.ndarray | None"]


class Kind(Enum):
    """What a node does with floating-point numbers."""

    OTHER = "no float32 or float16 among inputs and outputs, or control flow"
    MOVE = "chooses or moves values: takes the type it is given"
    KEEP = "float32"
    HALF = "float16"


class Decision:
    """Kinds and reasons of one graph's nodes, by position, and `wanted`: tensors whose float32 digits somebody needs.

    `nodes` holds names and operators as they were, because a rewrite moves the nodes.
    """

    def __init__(
        self, graph: GraphProto, types: TypeTable, rules: Sequence[PrecisionRule], constants: Constants
    ) -> None:
        self.graph, self.types, self.constants = graph, types, constants
        self.view = View(graph)
        self.kinds: list[Kind] = []
        self.reasons: dict[int, str] = {}
        self._problems: dict[tuple[str, bool], str | None] = {}
        self.nodes = [(n.name, n.op_type) for n in graph.node]
        self._position = {o: i for i, n in enumerate(graph.node) for o in n.output if o}
        self._pinned: set[str] = set()
        patterns = [(re.compile(r.pattern), r) for r in rules]
        for i, node in enumerate(graph.node):
            kind, reason = self._first_look(node, patterns)
            self.kinds.append(kind)
            if reason:
                self.reasons[i] = reason
        self._keep_indices()
        self._keep_upstream()
        self._keep_statistics()
        self.wanted = self._wanted()
        while self._keep_between():
            self.wanted = self._wanted()

    def floats(self, node: NodeProto) -> list[int]:
        """Positions of the inputs that are float32 or float16."""
        return [i for i, n in enumerate(node.input) if n and self.types[n] in FLOATS]

    def _first_look(self, node: NodeProto, rules: list[tuple[re.Pattern[str], PrecisionRule]]) -> tuple[Kind, str]:
        outputs = [o for o in node.output if o and self.types[o] in FLOATS]
        inputs = self.floats(node)
        if subgraphs(node) or not (inputs or outputs) or node.op_type in table.FLEXIBLE:
            return Kind.OTHER, ""
        if node.op_type == "Cast":
            if inputs:
                return (Kind.MOVE if outputs else Kind.OTHER), ""
            return (Kind.MOVE, "") if self.types[node.input[0]] == BOOL else (Kind.KEEP, "index arithmetic: an integer")
        problem = self._unsupported(node, inputs) or self._constant_problem(node, inputs)
        for pattern, rule in rules:
            if (not rule.op_types or node.op_type in rule.op_types) and pattern.search(node.name):
                if node.op_type not in table.MOVE or problem:
                    return Kind.KEEP, rule.reason
                self._pinned.update(node.output)  # nothing to compute: only must not be narrowed
        if problem:
            return Kind.KEEP, problem
        if node.op_type in table.MOVE:
            return Kind.MOVE, ""
        if node.op_type == "Div" and 1 in inputs and self.constants(node.input[1]) is None:
            return Kind.KEEP, "division by what is computed: small divisors leave the range of half"
        if node.op_type == "Softmax" and self._in_attention(node):
            return Kind.HALF, ""
        reason = table.KEEP.get(node.op_type)
        return (Kind.KEEP, reason) if reason else (Kind.HALF, "")

    def _unsupported(self, node: NodeProto, inputs: list[int]) -> str | None:
        for i in inputs:
            slot = input_slot(node, i, self.types.version)
            if slot is None:
                return f"operator {node.domain}:{node.op_type} has no schema that says it takes half"
            if HALF not in slot[1] and i == inputs[0]:
                return f"{node.op_type} takes no half at opset {self.types.version}"
        return None

    def _constant_problem(self, node: NodeProto, inputs: list[int]) -> str | None:
        exact = node.op_type in table.COMPARES
        for i in inputs:
            if i in table.FLOAT_SLOTS.get(node.op_type, ()):
                continue
            key = (node.input[i], exact)
            if key not in self._problems:
                value = self.constants(node.input[i])
                self._problems[key] = None if value is None else table.half_problem(node.input[i], value, exact=exact)
            problem = self._problems[key]
            if problem:
                return problem
        value = attribute(node, "value") if node.op_type == "ConstantOfShape" else None
        return None if value is None else table.half_problem("value", numpy_helper.to_array(value))

    def _in_attention(self, node: NodeProto) -> bool:
        """Whether a product of matrices makes the logits, and another takes the weights."""
        products = ("MatMul", "Einsum")
        above = self._walk_up(node.input[:1], ("Add", "Mul", "Div", "Where", "Cast"))
        below = self._walk_down(node.output[0], ("Cast", "Identity", "Dropout", "Mul", "Where"))
        return any(n.op_type in products for n in above) and any(n.op_type in products for n in below)

    def _walk_up(self, names: Iterable[str], through: Iterable[str]) -> list[NodeProto]:
        found: list[NodeProto] = []
        pending, seen = list(names), set()
        while pending:
            node = self.view.producer.get(pending.pop())
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            found.append(node)
            if node.op_type in through:
                pending += [n for n in node.input if n]
        return found

    def _walk_down(self, name: str, through: Iterable[str]) -> list[NodeProto]:
        found: list[NodeProto] = []
        pending, seen = [name], set()
        while pending:
            for node in self.view.consumers.get(pending.pop(), []):
                if id(node) not in seen:
                    seen.add(id(node))
                    found.append(node)
                    if node.op_type in through:
                        pending += [o for o in node.output if o]
        return found

    def _keep(self, index: int, reason: str) -> None:
        if self.kinds[index] is Kind.HALF:
            self.kinds[index] = Kind.KEEP
            self.reasons[index] = reason

    def _moving(self, node: NodeProto, inputs: list[int]) -> list[str]:
        return [node.input[i] for i in inputs if self.constants(node.input[i]) is None]

    def _keep_indices(self) -> None:
        """Arithmetic on nothing but former integers is index arithmetic; what it leads to in an output are coordinates."""
        made = self._spread("index arithmetic: made of integers", self._from_integer)
        for node in self.graph.node:
            if node.op_type in table.ELEMENTWISE or node.op_type in table.CARRIES:
                made.update(node.output if any(n in made for n in node.input) else ())
        for output in self.graph.output:
            if output.type.tensor_type.elem_type == FLOAT:
                for node in self._walk_up([output.name], table.ELEMENTWISE | table.CARRIES):
                    if node.op_type in table.ELEMENTWISE and any(n in made for n in node.input):
                        self._keep(self._position[node.output[0]], f"coordinates: returned as {output.name!r}")

    def _from_integer(self, node: NodeProto) -> bool:
        from_integer = node.op_type == "Cast" and not self.floats(node) and self.types[node.input[0]] != BOOL
        return from_integer or node.op_type == "Range"

    def _spread(self, reason: str, seed: Callable[[NodeProto], bool]) -> set[str]:
        """Keep arithmetic all of whose moving inputs come from `seed` nodes; returns the tensors so made."""
        made: set[str] = set()
        for i, node in enumerate(self.graph.node):
            if seed(node):
                made.update(node.output)
            elif node.op_type in table.ELEMENTWISE or node.op_type in table.CARRIES:
                moving = self._moving(node, self.floats(node))
                if moving and all(n in made for n in moving):
                    made.update(node.output)
                    if node.op_type in table.ELEMENTWISE:
                        self._keep(i, reason)
        return made

    def _keep_upstream(self) -> None:
        """Arithmetic that ends in sampling positions, indices, angles or sums keeps their digits."""
        carried = table.ELEMENTWISE | table.CARRIES
        for node in self.graph.node:
            seeds: list[str] = []
            through, reason = carried, f"coordinates: ends in {node.op_type} {node.name!r}"
            if node.op_type in ("GridSample", "RoiAlign"):
                seeds = list(node.input[1:2])
            elif node.op_type == "Cast" and self.floats(node) and self.types[node.output[0]] not in FLOATS:
                seeds, reason = list(node.input), f"index arithmetic: ends in an integer, {node.name!r}"
            elif node.op_type in ("Sin", "Cos"):
                seeds, reason = list(node.input), f"angles: ends in {node.op_type} {node.name!r}"
            elif table.KEEP.get(node.op_type, "").startswith("statistics") and node.op_type.startswith("Reduce"):
                seeds, reason = list(node.input[:1]), f"statistics: summed by {node.name!r}"
                through = frozenset(("Mul", "Pow", "Sub", "Abs", "Exp", "Cast"))
            for above in self._walk_up(seeds, through):
                if above.op_type in through and above.op_type in table.ELEMENTWISE:
                    self._keep(self._position[above.output[0]], reason)

    def _keep_statistics(self) -> None:
        """Arithmetic with a statistic (x - mean, x / deviation) keeps float32."""
        reason = "statistics: normalises by a sum"

        def sums(node: NodeProto) -> bool:
            return table.KEEP.get(node.op_type, "").startswith("statistics") and node.op_type.startswith("Reduce")

        made = self._spread(reason, sums)
        for i, node in enumerate(self.graph.node):
            if node.op_type in ("Sub", "Div", "Mul") and any(n in made for n in node.input):
                self._keep(i, reason)

    def _keep_between(self) -> bool:
        """Arithmetic from float32 to float32 is not worth two casts and a loss of digits. Returns whether any was kept."""
        full = {v.name for v in self.graph.input}
        kept = False
        for i, node in enumerate(self.graph.node):
            moving = self._moving(node, self.floats(node))
            inputs_full = all(n in full for n in moving)
            cheap = self.kinds[i] is Kind.HALF and node.op_type in table.ELEMENTWISE
            if cheap and moving and inputs_full and any(o in self.wanted for o in node.output):
                self._keep(i, "between float32 nodes: casts cost more than half saves")
                kept = True
            if self.kinds[i] is Kind.KEEP or (self.kinds[i] is Kind.MOVE and inputs_full):
                full.update(node.output)
        return kept

    def _wanted(self) -> set[str]:
        wanted = {o.name for o in self.graph.output if o.type.tensor_type.elem_type == FLOAT} | self._pinned
        for i in range(len(self.graph.node) - 1, -1, -1):
            node, kind = self.graph.node[i], self.kinds[i]
            decides = node.op_type in table.DECIDES or (node.op_type == "Cast" and kind is Kind.OTHER)
            if (
                kind is Kind.KEEP
                or decides
                or subgraphs(node)
                or (kind is Kind.MOVE and any(o in wanted for o in node.output))
            ):
                wanted.update(n for n in read_names(node) if n)
        return wanted

    def half(self, index: int, current: Callable[[str], int]) -> bool:
        """Whether the node at `index` works in half, given the types that its inputs have by now.

        A moving node narrows only what nobody needs in float32, and never widens; where moving costs nothing, its reader narrows.
        """
        node, kind = self.graph.node[index], self.kinds[index]
        if kind is not Kind.MOVE:
            return kind is Kind.HALF
        moving = self._moving(node, self.floats(node))
        if moving and all(current(n) == HALF for n in moving):
            return True
        if node.op_type in table.DECIDES or any(o in self.wanted for o in node.output):
            return False
        late = node.op_type in table.FREE and moving and all(current(n) == FLOAT for n in moving)
        return not late
