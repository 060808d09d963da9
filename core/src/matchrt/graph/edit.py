"""Small tools that every graph step shares: walk nested graphs, look up constants, find names, drop what is dead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

INT64_MAX, INT32_MAX = 2**63 - 1, 2**31 - 1


def opset(model: ModelProto) -> int:
    """The version of the default operator set, 0 if the model has none."""
    return next((d.version for d in model.opset_import if d.domain in ("", "ai.onnx")), 0)


def copy_model(model: ModelProto) -> ModelProto:
    """A deep copy."""
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The bodies of `node` (If, Loop, Scan), in attribute order."""
    found = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            found.extend(attribute.graphs)
    return found


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and every body nested in it."""
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from all_graphs(body)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Value of an attribute, or `default`."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Set or replace an attribute."""
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def read_names(node: NodeProto) -> Iterator[str]:
    """Every tensor that `node` reads, also from inside its bodies; inner names included."""
    yield from (n for n in node.input if n)
    for body in subgraphs(node):
        for inner in body.node:
            yield from read_names(inner)
        yield from (o.name for o in body.output)


class Names:
    """Hands out tensor and node names that a model does not use yet."""

    def __init__(self, model: ModelProto) -> None:
        self._taken: set[str] = set()
        for graph in all_graphs(model.graph):
            for node in graph.node:
                self._taken.update((node.name, *node.output))
            self._taken.update(v.name for v in (*graph.input, *graph.output, *graph.initializer))

    def fresh(self, wanted: str) -> str:
        """`wanted`, or the first free `wanted_2`, `wanted_3`, …; it is taken from now on."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name


class View:
    """Producers, consumers and constants of one graph, as it is when the view is made."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.producer: dict[str, NodeProto] = {o: n for n in graph.node for o in n.output if o}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(read_names(node)):
                self.consumers.setdefault(name, []).append(node)
        self.outputs = {o.name for o in graph.output}
        inputs = {i.name for i in graph.input}
        self.constants: dict[str, TensorProto] = {t.name: t for t in graph.initializer if t.name not in inputs}
        for node in graph.node:
            value = constant_value(node)
            if value is not None:
                self.constants[node.output[0]] = value

    def array(self, name: str) -> np.ndarray | None:
        """The value of a constant tensor, or None."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def scalar(self, name: str) -> float | None:
        """The value of a constant of one element, or None."""
        tensor = self.constants.get(name)
        if tensor is None or int(np.prod(tensor.dims)) != 1:
            return None
        return float(numpy_helper.to_array(tensor).reshape(-1)[0])

    def single_use(self, name: str) -> bool:
        """Whether one node reads `name`, once, and the graph does not return it."""
        readers = self.consumers.get(name, [])
        return len(readers) == 1 and list(read_names(readers[0])).count(name) == 1 and name not in self.outputs


def constant_value(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node in any of its spellings; None for other nodes and for strings."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or not node.attribute:
        return None
    item = node.attribute[0]
    value = onnx.helper.get_attribute_value(item)
    name = node.output[0]
    if item.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(value)
        tensor.name = name
        return tensor
    if item.name in ("value_float", "value_floats"):
        return numpy_helper.from_array(np.asarray(value, np.float32), name)
    if item.name in ("value_int", "value_ints"):
        return numpy_helper.from_array(np.asarray(value, np.int64), name)
    return None


def rename_uses(graph: GraphProto, new_names: Mapping[str, str]) -> None:
    """Let every reader of a key (nested ones too) read its value, through chains; outputs of the graph itself keep their names."""
    if not new_names:
        return

    def resolve(name: str) -> str:
        while name in new_names:
            name = new_names[name]
        return name

    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in new_names:
                node.input[i] = resolve(name)
        for body in subgraphs(node):
            rename_uses(body, new_names)
            for output in body.output:
                output.name = resolve(output.name)


def lift_constants(graph: GraphProto) -> None:
    """Turn Constant nodes into initialisers, in nested graphs too."""
    for part in all_graphs(graph):
        kept = []
        for node in part.node:
            value = constant_value(node)
            if value is None or any(node.output[0] == o.name for o in part.output):
                kept.append(node)
            else:
                part.initializer.append(value)
        if len(kept) != len(part.node):
            replace_nodes(part, kept)


def replace_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Make `nodes` the graph's nodes."""
    copies = []
    for node in nodes:
        copied = NodeProto()
        copied.CopyFrom(node)
        copies.append(copied)
    del graph.node[:]
    graph.node.extend(copies)


def remove_dead(graph: GraphProto) -> bool:
    """Drop nodes and initialisers that nothing reads, bodies first. Returns whether anything went."""
    changed = False
    for node in graph.node:
        for body in subgraphs(node):
            changed |= remove_dead(body)
    needed = {o.name for o in graph.output}
    alive = []
    for node in reversed(graph.node):
        if any(o in needed for o in node.output if o) or not any(node.output):
            alive.append(node)
            needed.update(read_names(node))
    if len(alive) != len(graph.node):
        replace_nodes(graph, alive[::-1])
        changed = True
    inputs = {i.name for i in graph.input}
    for i in range(len(graph.initializer) - 1, -1, -1):
        name = graph.initializer[i].name
        if name not in needed and name not in inputs:
            del graph.initializer[i]
            changed = True
    return changed


def sort_nodes(graph: GraphProto) -> None:
    """Order nodes so that each follows what it reads, otherwise as they stood."""
    made = {o: i for i, n in enumerate(graph.node) for o in n.output if o}
    order: list[NodeProto] = []
    state = [0] * len(graph.node)
    for root in range(len(graph.node)):
        stack = [(root, False)]
        while stack:
            index, done = stack.pop()
            if done:
                order.append(graph.node[index])
                continue
            if state[index]:
                continue
            state[index] = 1
            stack.append((index, True))
            needs = [made[n] for n in read_names(graph.node[index]) if n in made]
            stack.extend((n, False) for n in reversed(needs) if not state[n])
    if any(a is not b for a, b in zip(order, graph.node, strict=True)):
        replace_nodes(graph, order)
