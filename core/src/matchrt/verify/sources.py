"""Where the reference's tensors inside a network come from: hooks at PyTorch's modules, or another graph with tensors of the same names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from matchrt.bundle import Bundle
from matchrt.plugins import MatcherHooks
from matchrt.verify.scopes import Graph
from matchrt.verify.subjects import Tensors


@dataclass(frozen=True)
class Failing:
    """The network and the pair to look into, and the network's inputs there."""

    network: str
    pair: str
    inputs: Tensors


@dataclass(frozen=True)
class Value:
    """A named tensor of the reference, and the graph's tensor that it is."""

    name: str
    tensor: str
    array: np.ndarray


class Source:
    """Where the reference's values come from."""

    def tensors(self, graph: Graph) -> list[str]:
        """The graph's tensors that can be compared."""
        raise NotImplementedError

    def depth(self, tensor: str) -> int:
        """Those of smaller depth are looked at first."""
        raise NotImplementedError

    def values(self, graph: Graph, tensors: Collection[str]) -> list[Value]:
        """The reference's values of `tensors`, as far as they can be told."""
        raise NotImplementedError


class FromModules(Source):
    """The PyTorch network's modules."""

    def __init__(self, bundle: Bundle, hooks: MatcherHooks, options: Mapping[str, object], failing: Failing) -> None:
        from matchrt.backends.torch.options import parse_options
        from matchrt.verify.modules import Modules

        self.modules = Modules(bundle, hooks, parse_options("fp32", options))
        self.failing = failing
        self._depth: dict[str, int] = {}

    def tensors(self, graph: Graph) -> list[str]:
        """At the borders of modules."""
        for path, scope in graph.scopes().items():
            for tensor in (*scope.enters, *scope.leaves):
                self._depth.setdefault(tensor, path.count("."))
        return sorted(self._depth, key=lambda t: graph.maker.get(t, -1))

    def depth(self, tensor: str) -> int:
        """Of the outermost module at whose border it lies."""
        return self._depth[tensor]

    def values(self, graph: Graph, tensors: Collection[str]) -> list[Value]:
        """Run the network with hooks at the modules concerned; what each was given and returned is paired with the graph by order."""
        scopes = {p: s for p, s in graph.scopes().items() if {*s.enters, *s.leaves} & set(tensors)}
        calls = self.modules.run(self.failing.network, self.failing.inputs, set(scopes))
        sizes = Sizes(graph, self.failing.inputs)
        found = []
        for path in sorted(scopes, key=lambda p: -p.count(".")):
            scope, made = scopes[path], calls.get(path)
            if made is not None:
                found += [Value(path, t, a) for t, a in sizes.paired(scope.leaves, made.returned)]
                found += [Value(f"{path} (input)", t, a) for t, a in sizes.paired(scope.enters, made.given)]
        return [v for v in found if v.tensor in tensors]


class FromGraph(Source):
    """Another graph that has tensors of the same names, run by onnxruntime in float32."""

    def __init__(self, bundle: Bundle, network: str, run: Callable[[Graph, Collection[str]], Tensors]) -> None:
        self.graph = Graph(onnx.load(str(bundle.graph(network))))
        self._run = run
        self._names = set(self.graph.floats)

    def tensors(self, graph: Graph) -> list[str]:
        """Those that both have."""
        return [t for t in graph.floats if t in self._names]

    def depth(self, tensor: str) -> int:
        """Outputs of modules first."""
        return self.graph.places[self.graph.maker[tensor]].count(".")

    def values(self, graph: Graph, tensors: Collection[str]) -> list[Value]:
        """Run it with those as outputs."""
        made = self._run(self.graph, tensors)
        nodes, maker = self.graph.nodes, self.graph.maker
        return [Value(nodes[maker[t]].name, t, made[t]) for t in tensors if t in made]


class Sizes:
    """Pairs what crosses a module's border in PyTorch with what does in the graph: same order, same numbers of elements."""

    def __init__(self, graph: Graph, inputs: Tensors) -> None:
        model = graph.model
        self._known: dict[str, int] = {n: v.size for n, v in inputs.items()}
        axes: dict[str, int] = {}
        for value in model.graph.input:
            for dim, size in zip(value.type.tensor_type.shape.dim, inputs[value.name].shape, strict=True):
                if dim.dim_param:
                    axes[dim.dim_param] = size
        self._axes, self._graph = axes, graph

    def size(self, tensor: str) -> int | None:
        """Elements of a tensor; None where inference does not tell."""
        if tensor in self._known:
            return self._known[tensor]
        return self._graph.elements(tensor, self._axes)

    def paired(self, tensors: Sequence[str], arrays: Sequence[np.ndarray]) -> list[tuple[str, np.ndarray]]:
        """Pairs, if there is one way to pair by order; else none."""
        if len(tensors) == len(arrays) and all(
            self.size(t) in (None, a.size) for t, a in zip(tensors, arrays, strict=True)
        ):
            return list(zip(tensors, arrays, strict=True))
        sizes, others = {a.size for a in arrays}, {self.size(t) for t in tensors}
        left = [t for t in tensors if self.size(t) in sizes]
        right = [a for a in arrays if a.size in others]
        if len(left) == len(right) and [self.size(t) for t in left] == [a.size for a in right]:
            return list(zip(left, right, strict=True))
        return []
