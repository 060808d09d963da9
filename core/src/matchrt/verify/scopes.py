"""A graph by the modules that its nodes come from: which tensors enter and leave each module, and what is made from what."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from matchrt.graph.edit import copy_model, opset, read_names
from matchrt.graph.types import FLOAT, TypeTable


@dataclass
class Scope:
    """One module's part of the graph: float tensors that enter and that leave it, in the order of the graph."""

    path: str
    enters: list[str] = field(default_factory=list)
    leaves: list[str] = field(default_factory=list)


class Graph:
    """A network's graph, looked at by module."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.maker = {o: i for i, n in enumerate(self.nodes) for o in n.output if o}
        self.constants = {t.name for t in model.graph.initializer}
        self.inputs = [i.name for i in model.graph.input if i.name not in self.constants]
        self.outputs = [o.name for o in model.graph.output]
        self.places = self._places()

    def _places(self) -> list[str]:
        """Module path of every node; a node without one is where its first computed input was made."""
        places: list[str] = []
        for node in self.nodes:
            path, slash, _ = node.name.rpartition("/")
            if not slash:
                made = next((self.maker[n] for n in node.input if n in self.maker), None)
                path = places[made] if made is not None and made < len(places) else ""
            places.append(path)
        return places

    @cached_property
    def floats(self) -> list[str]:
        """Float32 tensors that nodes make from the graph's inputs, in order."""
        types = TypeTable(self.model.graph, opset(self.model))
        live = set(self.inputs)
        found = []
        for node in self.nodes:
            if any(n in live for n in read_names(node)):
                live.update(o for o in node.output if o)
                found += [o for o in node.output if o and types[o] == FLOAT]
        return found

    @cached_property
    def readers(self) -> Mapping[str, list[int]]:
        """Nodes that read each tensor."""
        found: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in set(read_names(node)):
                found.setdefault(name, []).append(i)
        return found

    def scopes(self) -> dict[str, Scope]:
        """Every module that has nodes, and every module around one; the network itself, "", has its float outputs."""
        floats = {*self.floats, *self.inputs}
        found = {"": Scope("", leaves=[o for o in self.outputs if o in floats])}
        for i, node in enumerate(self.nodes):
            for path in _around(self.places[i]):
                scope = found.setdefault(path, Scope(path))
                for name in node.input:
                    if name in floats and name not in scope.enters and not self._inside(self.maker.get(name), path):
                        scope.enters.append(name)
                for name in node.output:
                    if name in floats and self._left(name, path):
                        scope.leaves.append(name)
        return found

    def _inside(self, node: int | None, path: str) -> bool:
        return node is not None and (self.places[node] == path or self.places[node].startswith(path + "."))

    def _left(self, name: str, path: str) -> bool:
        return name in self.outputs or any(not self._inside(r, path) for r in self.readers.get(name, ()))

    def behind(self, tensor: str, known: Collection[str]) -> tuple[list[str], list[int]]:
        """The nearest of the `known` tensors (and graph inputs) that `tensor` is made from, and the nodes between, in order."""
        found: dict[str, None] = {}
        nodes: set[int] = set()
        todo = [tensor]
        while todo:
            made = self.maker.get(todo.pop())
            if made is None or made in nodes:
                continue
            nodes.add(made)
            for name in read_names(self.nodes[made]):
                if name in known or name in self.inputs:
                    found[name] = None
                else:
                    todo.append(name)
        return list(found), sorted(nodes)

    def with_outputs(self, names: Collection[str]) -> onnx.ModelProto:
        """A copy whose outputs are its own and `names`, with their types and, where inference finds them, shapes."""
        model = copy_model(self.model)
        shapes = self._shapes
        for name in names:
            if name not in self.outputs:
                value = model.graph.output.add(name=name)
                value.type.tensor_type.elem_type = TensorProto.FLOAT
                for i, size in enumerate(shapes.get(name, ())):
                    dim = value.type.tensor_type.shape.dim.add()
                    if isinstance(size, int):
                        dim.dim_value = size
                    else:
                        dim.dim_param = size or f"{name}_{i}"
        return model

    @cached_property
    def _shapes(self) -> dict[str, tuple[int | str, ...]]:
        light = onnx.ModelProto()
        light.CopyFrom(self.model)
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
        return {
            v.name: tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in v.type.tensor_type.shape.dim)
            for v in (*inferred.graph.value_info, *inferred.graph.output)
        }

    def elements(self, name: str, axes: Mapping[str, int]) -> int | None:
        """Number of elements, dynamic axes having the sizes `axes`; None where inference does not tell."""
        if name not in self._shapes:
            return None
        sizes = [dim if isinstance(dim, int) else axes.get(dim) for dim in self._shapes[name]]
        return None if None in sizes else int(np.prod([s for s in sizes if s is not None], dtype=np.int64))

    def place_of(self, nodes: Collection[int]) -> str:
        """The innermost module that holds all `nodes` that compute floats."""
        floats = set(self.floats)
        paths = [self.places[i] for i in nodes if any(o in floats for o in self.nodes[i].output)]
        paths = paths or [self.places[i] for i in nodes]
        if not paths:
            return ""
        parts = [p.split(".") if p else [] for p in paths]
        steps = zip(*parts, strict=False)  # the shortest path ends what they share
        return ".".join(step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps))

    def names_of(self, nodes: Collection[int]) -> tuple[str, ...]:
        """Names of those of `nodes` that compute floats, with their operators."""
        floats = set(self.floats)
        return tuple(
            f"{self.nodes[i].name} ({self.nodes[i].op_type})"
            for i in nodes
            if any(o in floats for o in self.nodes[i].output)
        )


def _around(path: str) -> list[str]:
    """`path` and the modules around it, outermost first; without the network itself."""
    parts = path.split(".") if path else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
