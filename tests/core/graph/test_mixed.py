"""The search for float32 blocks: finds the one that matters, keeps to its budget, tells what it tried."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graph_kit import graph, normal, run, run_half, same

from matchrt.errors import UsageError
from matchrt.graph.mixed import blocks_of, search_mixed
from matchrt.graph.precision import to_half
from matchrt.graph.types import FLOAT, TypeTable

LAYERS = 6


def chain(bad: int) -> onnx.ModelProto:
    """Six layers, one of which subtracts nearly equal numbers: 300 + x - 300."""
    body = ""
    for i in range(LAYERS):
        source = "x" if i == 0 else f"y{i - 1}"
        body += f" a{i} = Add({source}, c{i}) b{i} = Sub(a{i}, c{i})"
        body += f" m{i} = MatMul(b{i}, w) y{i} = Tanh(m{i})"
    model = graph(
        f"(float[4,8] x) => (float[4,8] out) {{ {body} out = MatMul(y{LAYERS - 1}, w) }}",
        w=normal(8, 8) / 3,
        **{f"c{i}": np.float32(300.0 if i == bad else 0.25) for i in range(LAYERS)},
    )
    for node in model.graph.node:
        index = node.output[0][1:]
        node.name = f"layers.{index}/{node.name}" if index.isdigit() else f"/{node.name}"
    return model


def measure_against(model: onnx.ModelProto) -> tuple[list[int], object]:
    feeds = {"x": normal(4, 8, seed=5) / 8}
    expected = run(model, feeds)["out"]
    calls: list[int] = []

    def measure(half: onnx.ModelProto, rules: object = ()) -> float:
        calls.append(1)
        return float(np.abs(run_half(half, feeds)["out"] - expected).max() / np.abs(expected).max())

    return calls, measure


@pytest.mark.parametrize("bad", [0, 2, 5])
def test_the_layer_that_loses_digits_is_found(bad: int) -> None:
    model = chain(bad)
    calls, measure = measure_against(model)
    result = search_mixed(model, measure, 0.01, budget=24)  # type: ignore[arg-type]
    assert result.passed
    assert len(calls) == len(result.trials) <= 24
    assert not result.trials[0].passed
    assert result.trials[0].blocks == ()
    chosen = min((t for t in result.trials if t.passed), key=lambda t: t.kept)
    assert chosen.blocks == (f"layers.{bad}",)
    table = TypeTable(result.model.graph, 18)
    assert table[f"a{bad}"] == FLOAT
    assert sum(table[f"m{i}"] == FLOAT for i in range(LAYERS)) == 1
    assert same(to_half(model, result.rules)[0], result.model)


def test_all_half_is_taken_at_once_where_it_passes() -> None:
    model = chain(-1)
    calls, measure = measure_against(model)
    result = search_mixed(model, measure, 0.05)  # type: ignore[arg-type]
    assert result.passed
    assert len(calls) == 1
    assert not result.rules


def test_a_figure_out_of_reach_is_told_and_the_best_trial_kept() -> None:
    calls, _ = measure_against(chain(0))
    result = search_mixed(chain(0), lambda *_: float("nan"), 0.01, budget=9)
    assert not result.passed
    assert len(result.trials) <= 9
    assert not calls
    with pytest.raises(UsageError, match="budget"):
        search_mixed(chain(0), lambda m: 0.0, 0.01, budget=0)


def test_the_budget_is_never_exceeded() -> None:
    model = chain(3)
    for budget in range(1, 14):
        calls, measure = measure_against(model)
        result = search_mixed(model, measure, 0.01, budget=budget)  # type: ignore[arg-type]
        assert len(calls) <= budget
        assert result.passed == (budget > 1)


def test_blocks_follow_module_paths_and_stay_few() -> None:
    model = chain(0)
    assert set(blocks_of(model, [])) == {f"layers.{i}" for i in range(LAYERS)} | {"(network)"}
    assert set(blocks_of(model, [], most=2)) == {"layers", "(network)"}
    for node in model.graph.node:
        node.name = node.name.replace("/", "_")
    runs = blocks_of(model, [], most=4)
    assert len(runs) == 4
    assert sum(len(v) for v in runs.values()) == len(model.graph.node)
