"""A half engine with random weights beyond the fixed bound is held to what rounding does by itself."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from matchrt.errors import EnvironmentLackError
from matchrt.export.compare import TensorDifference
from matchrt.model import Parity
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.verify.bounds import Bounds, bounds_for, tensor_failure
from matchrt.verify.emulated import emulation_target
from matchrt.verify.rounding import with_rounding
from matchrt.verify.run import PairResult
from matchrt.verify.subjects import How, opened

HALF = bounds_for(Parity(), "fp16", None, random_weights=True)


def difference(relative: float) -> TensorDifference:
    blank = dict.fromkeys(TensorDifference.__dataclass_fields__, 0)
    return TensorDifference(**{**blank, "network": "net", "tensor": "scores", "integral": False, "relative": relative})


def result(name: str, *relatives: float) -> PairResult:
    pair = SimpleNamespace(name=name)
    equal = tuple(difference(r) for r in relatives)
    return PairResult(pair=pair, figures=None, equal=equal, own=(), reference=None, other=None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Sides:
    """Stands for both sides: the engine's name decides the answer."""

    bounds: Bounds
    engine: str = "engine"
    reference: str = "torch"
    bundle: Any = None
    hooks: Any = field(default_factory=lambda: SimpleNamespace(plugins=None))
    progress: Any = None

    def all(self, pairs: Any) -> list[PairResult]:
        assert [p.name for p in pairs] == ["late"]
        assert (self.engine, self.reference) == (
            "emulated",
            "float32",
        )  # not PyTorch: a fault of the graph is no rounding
        return [result("late", 0.05, 0.001)]


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    @contextmanager
    def opened(bundle: Any, hooks: Any, how: Any, progress: Any) -> Any:
        asked.append(how.name)
        if how.name == "nothing":
            raise EnvironmentLackError("no onnxruntime")
        yield "emulated"

    @contextmanager
    def exact(bundle: Any, how: Any, plugins: Any, progress: Any) -> Any:
        assert (how.backend, how.precision) == ("onnxruntime", "fp32")
        yield "float32"

    monkeypatch.setattr("matchrt.verify.emulated.opened_emulated", opened)
    monkeypatch.setattr("matchrt.verify.rounding.opened", exact)
    return asked


def request(engine: str = "trt", emulate: bool = False) -> Any:
    return SimpleNamespace(engine=SimpleNamespace(name=engine, threads=1), emulate=emulate)


def test_only_pairs_beyond_the_bound_are_emulated_and_judged_by_it(emulated: list[str]) -> None:
    early, late = result("early", 0.04, 0.0), result("late", 0.09, 0.08)
    made, notes = with_rounding(Sides(HALF), [early, late], request())  # type: ignore[arg-type]
    assert made[0] == early
    assert made[1].rounding == (0.05, 0.001)
    assert "2 times what rounding to half does" in notes[0]
    lines = [tensor_failure(d, HALF, rounding) for d, rounding in made[1].judged()]
    assert lines[0] is None  # 0.09 is less than twice 0.05
    assert lines[1] == "net.scores: relative error 0.08, allowed 0.05 (rounding to half does 0.001 by itself)"
    figures = SimpleNamespace(to_dict=dict)
    told = replace(made[1], figures=figures).to_dict()["tensors"]["equal_inputs"]  # type: ignore[arg-type]
    assert [t["rounding"] for t in told] == [0.05, 0.001]


@pytest.mark.parametrize(
    ("bounds", "asked", "relatives"),
    [
        (HALF, request(), (0.04, 0.0)),  # within
        (HALF, request(emulate=True), (0.2, 0.2)),  # it is the emulation
        (replace(HALF, tensors=False), request(), (0.2, 0.2)),  # trained weights: judged by matches
        (bounds_for(Parity(), "fp32", None, random_weights=True), request(), (0.2, 0.2)),
    ],
)
def test_nothing_is_emulated_where_it_decides_nothing(
    emulated: list[str], bounds: Bounds, asked: Any, relatives: tuple[float, ...]
) -> None:
    late = result("late", *relatives)
    assert with_rounding(Sides(bounds), [late], asked) == ([late], ())  # type: ignore[arg-type]
    assert emulated == []


def test_where_nothing_can_be_emulated_the_fixed_bound_stands(emulated: list[str]) -> None:
    late = result("late", 0.09)
    made, notes = with_rounding(Sides(HALF), [late], request("nothing"))  # type: ignore[arg-type]
    assert made == [late]
    assert notes == ("held to the fixed bound: rounding cannot be emulated here: no onnxruntime",)
    assert tensor_failure(*late.judged()[0][:1], HALF) == "net.scores: relative error 0.09, allowed 0.05"


def test_a_fault_of_the_graph_is_not_taken_for_rounding(
    fixed_bundle: Path, plant: Any, verified: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def louder(model: onnx.ModelProto) -> None:
        weight = next(t for t in model.graph.initializer if len(t.dims) == 4 and t.dims[0] > 4)
        weight.CopyFrom(onnx.numpy_helper.from_array(1.5 * onnx.numpy_helper.to_array(weight), weight.name))

    def faithful(request: Any, bundle: Any, hooks: Any, progress: Any) -> Any:
        """An engine that computes just what the faulty graph says."""
        return opened(bundle, How(threads=1), hooks.plugins, progress)

    monkeypatch.setattr("matchrt.verify.run.opened_engine", faithful)
    engine = How(backend="tensorrt", precision="fp16", threads=1)
    made = verified(plant(fixed_bundle, "extractor", louder), engine=engine, locate=False)
    assert not made.passed
    assert 0 < max(r for p in made.pairs for r in p.rounding) < 0.02
    assert max(d.relative for p in made.pairs for d in p.equal) > 0.05


def test_tensorrt_is_emulated_where_it_is_not_installed() -> None:
    hooks = MatcherHooks(get_plugins(), get_plugins().matcher("superpoint-lightglue"))
    target = emulation_target(hooks, "tensorrt")
    assert (target.backend, target.precision) == ("tensorrt", "fp16")


@pytest.mark.parametrize(("differing", "failed"), [(0.1, False), (0.21, True), (float("inf"), True)])
def test_other_choices_fail_even_where_their_values_agree(differing: float, failed: bool) -> None:
    """A list of quite other points has no common rows to differ in: it must not pass for that."""
    found = replace(difference(0.0), tensor="cells", integral=True, differing=differing)
    failure = tensor_failure(found, HALF)
    assert (failure is not None) == failed
    assert failure is None or "of the choices differ, allowed 20%" in failure
    assert tensor_failure(found, bounds_for(Parity(), "fp32", None, random_weights=True)) is None
