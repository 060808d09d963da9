"""to_half on random graphs: sound types, runnable, stable under repetition, near the float32 result."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_kit import normal, run, run_half, same
from onnx import helper, numpy_helper

from matchrt.graph.precision import to_half
from matchrt.graph.types import FLOAT, TypeTable, type_problems

SHAPE = (1, 4, 8, 8)


class Builder:
    """Grows a graph of tensors of one shape, by steps drawn at random."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.tensors = ["x", "z"]

    def constant(self, value: np.ndarray | float) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value, np.float32) if not isinstance(value, np.ndarray) else value
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, f"n{len(self.nodes)}_{op}", **attributes))
        return names[0]

    def any(self) -> str:
        return str(self.random.choice(self.tensors[-5:]))

    def step(self) -> str:
        kind = str(self.random.choice(STEPS))
        x, y = self.any(), self.any()
        number = float(self.random.choice([0.5, 2.0, 1e6, 1e-9, -1.0]))
        if kind in ("Relu", "Sigmoid", "Tanh", "Exp", "Softmax", "Abs"):
            return self.node(
                kind, self.node("Clip", x, self.constant(-5.0), self.constant(5.0)) if kind == "Exp" else x
            )
        if kind in ("Add", "Sub", "Mul", "Max"):
            return self.node(kind, x, y)
        if kind == "number":
            return self.node(str(self.random.choice(["Add", "Mul"])), x, self.constant(number))
        if kind == "Conv":
            return self.node("Conv", x, self.constant(normal(4, 4, 3, 3, seed=len(self.nodes)) / 6), pads=[1, 1, 1, 1])
        if kind == "MatMul":
            return self.node("MatMul", x, self.node("Transpose", y, perm=[0, 1, 3, 2]))
        if kind == "statistics":
            mean = self.node("ReduceMean", x, self.constant(np.array([-1])))
            return self.node("Sub", x, mean)
        if kind == "Sqrt":
            return self.node("Sqrt", self.node("Abs", x))
        if kind == "Concat":
            joined = self.node("Concat", x, y, axis=1)
            return self.node("Slice", joined, *(self.constant(np.array([v])) for v in (2, 6, 1)))
        if kind == "Split":
            self.node("Split", x, self.constant(np.array([1, 3])), outputs=2, axis=1)
            first, second = self.nodes[-1].output
            return self.node("Concat", second, first, axis=1)
        if kind == "Where":
            return self.node(
                "Where", self.node("Greater", x, y), y, self.constant(float(self.random.choice([-1e9, 0.0])))
            )
        if kind == "integers":
            index = self.node("Cast", self.node("Clip", x, self.constant(-9.0), self.constant(9.0)), to=7)
            return self.node("Add", self.node("Cast", index, to=1), y)
        if kind == "casts":
            return self.node("Cast", self.node("Cast", x, to=10), to=1)
        if kind == "MaxPool":
            return self.node("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        if kind == "Resize":
            small = self.node("Resize", x, "", self.constant(np.array([1, 1, 0.5, 0.5], np.float32)), mode="linear")
            return self.node("Resize", small, "", self.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
        if kind == "TopK":
            self.node("TopK", x, self.constant(np.array([8])), outputs=2)
            values, indices = self.nodes[-1].output
            return self.node("GatherElements", self.node("Add", values, y), indices, axis=3)
        assert kind == "GridSample"
        flat = self.node("Slice", x, *(self.constant(np.array([v])) for v in (0, 2, 1)))
        grid = self.node("Tanh", self.node("Transpose", flat, perm=[0, 2, 3, 1]))
        return self.node("GridSample", y, grid)

    def model(self, steps: int) -> onnx.ModelProto:
        for _ in range(steps):
            self.tensors.append(self.step())
        outputs = list(dict.fromkeys([self.tensors[-1], self.any()]))
        values = [helper.make_tensor_value_info(n, FLOAT, SHAPE) for n in ("x", "z", *outputs)]
        initialisers = [numpy_helper.from_array(v, k) for k, v in self.constants.items()]
        graph = helper.make_graph(
            self.nodes, "g", values[:2], [v for v in values[2:] if v.name not in "xz"], initialisers
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


STEPS = ("Relu", "Sigmoid", "Tanh", "Exp", "Softmax", "Abs", "Add", "Sub", "Mul", "Max", "number", "Conv", "MatMul", "statistics",
         "Sqrt", "Concat", "Split", "Where", "integers", "casts", "MaxPool", "Resize", "TopK", "GridSample")  # fmt: skip


@pytest.mark.parametrize("seed", range(120))
def test_random_graphs_become_typed_half_graphs(seed: int) -> None:
    model = Builder(seed).model(4 + seed % 17)
    onnx.checker.check_model(model, full_check=True)
    assert type_problems(model) == []
    half, record = to_half(model)
    onnx.checker.check_model(half, full_check=True)
    table = TypeTable(half.graph, 18)
    assert all(table[o.name] == FLOAT for o in half.graph.output)
    assert same(to_half(half)[0], half)
    assert [k.node for k in to_half(half)[1].kept] == [k.node for k in record.kept]
    feeds = {"x": normal(*SHAPE, seed=seed) / 2, "z": normal(*SHAPE, seed=seed + 1) / 2}
    results = run(
        half, {i.name: feeds[i.name] for i in half.graph.input}
    )  # onnxruntime refuses mixed types when it loads
    assert all(
        v.shape == tuple(d.dim_value for d in o.type.tensor_type.shape.dim)
        for v, o in zip(results.values(), half.graph.output, strict=True)
    )


@pytest.mark.parametrize("seed", range(40))
def test_smooth_random_graphs_keep_their_results(seed: int) -> None:
    """Without operators that jump (comparisons, integers, ranks) half stays near float32."""
    builder = Builder(seed)
    smooth = (
        "Relu",
        "Sigmoid",
        "Tanh",
        "Softmax",
        "Add",
        "Sub",
        "Max",
        "Conv",
        "statistics",
        "Concat",
        "Split",
        "MaxPool",
        "Resize",
        "casts",
    )
    builder.random = _Only(builder.random, smooth)  # type: ignore[assignment]
    model = builder.model(10)
    feeds = {"x": normal(*SHAPE, seed=seed) / 2, "z": normal(*SHAPE, seed=seed + 1) / 2}
    expected, found = run(model, feeds), run_half(to_half(model)[0], feeds)
    for name, value in expected.items():
        scale = np.abs(value).max() + 1e-3
        assert np.abs(found[name] - value).max() <= 0.02 * scale, name


class _Only:
    """A random source whose choices of a step come from a smaller set."""

    def __init__(self, source: np.random.Generator, steps: tuple[str, ...]) -> None:
        self.source, self.steps = source, steps

    def choice(self, options: object) -> object:
        return self.source.choice(self.steps if options is STEPS else options)  # type: ignore[arg-type]
