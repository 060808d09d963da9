"""Remove nodes that do nothing: Identity, casts to the same type, reshapes in a row, transposes that cancel."""

from __future__ import annotations

from onnx import NodeProto

from matchrt.graph.edit import View, attribute, rename_uses, replace_nodes, set_attribute
from matchrt.graph.types import TypeTable

RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


def tidy(types: TypeTable) -> bool:
    """Clean the graph of `types` and its bodies in place; returns whether anything changed. Results stay bit-equal."""
    changed = _Tidy(types).run()
    for bodies in types.bodies.values():
        for body in bodies:
            changed |= tidy(body)
    return changed


class _Tidy:
    def __init__(self, types: TypeTable) -> None:
        self.types, self.graph, self.view = types, types.graph, View(types.graph)
        self.sources: dict[str, str] = {}
        self.changed = False

    def run(self) -> bool:
        for node in self.graph.node:
            if self._does_nothing(node) and self._may_go(node):
                self.sources[node.output[0]] = node.input[0]
            elif node.op_type == "Transpose":
                self._transpose(node)
            elif node.op_type == "Reshape":
                self._reshape(node)
        if self.sources:
            rename_uses(self.graph, self.sources)
            replace_nodes(self.graph, [n for n in self.graph.node if not n.output or n.output[0] not in self.sources])
        return self.changed or bool(self.sources)

    def _source(self, name: str) -> str:
        while name in self.sources:
            name = self.sources[name]
        return name

    def _may_go(self, node: NodeProto) -> bool:
        """A node that makes a graph output, or whose further results are read, stays."""
        if node.output[0] in self.view.outputs:
            return False
        return not any(o in self.view.consumers or o in self.view.outputs for o in node.output[1:] if o)

    def _does_nothing(self, node: NodeProto) -> bool:
        if node.op_type == "Dropout":
            return len(node.input) < 3 or not node.input[2] or self.view.scalar(node.input[2]) == 0
        if node.op_type == "Cast":
            return self.types[node.input[0]] == int(attribute(node, "to"))
        if node.op_type == "Transpose":
            perm = list(attribute(node, "perm", []))
            return bool(perm) and perm == list(range(len(perm)))
        return node.op_type == "Identity" or (node.op_type == "Concat" and len(node.input) == 1)

    def _transpose(self, node: NodeProto) -> None:
        """Two transposes in a row are one."""
        above = self.view.producer.get(self._source(node.input[0]))
        if above is None or above.op_type != "Transpose":
            return
        first, second = list(attribute(above, "perm", [])), list(attribute(node, "perm", []))
        if len(first) == len(second) > 0:
            node.input[0] = self._source(above.input[0])
            set_attribute(node, "perm", [first[p] for p in second])
            self.changed = True

    def _reshape(self, node: NodeProto) -> None:
        """The later of two reshapes in a row decides, unless it copies sizes (0) from its input."""
        above = self.view.producer.get(self._source(node.input[0]))
        shape = self.view.array(node.input[1])
        if above is not None and above.op_type in RESHAPES and shape is not None and not (shape == 0).any():
            node.input[0] = self._source(above.input[0])
            self.changed = True
