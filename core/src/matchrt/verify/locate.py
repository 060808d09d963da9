"""Say where a difference enters: the first named tensor, in the order of the graph, whose error jumps over that of what it is made from.

Named points are the tensors that enter and leave modules. In PyTorch they are taken by hooks while the network runs in the exported form;
in the graph they are those at the borders of a module's nodes (nodes are named by module path). The engine is opened once more on a
bundle that has them as outputs. Where the reference is another bundle, every tensor that both graphs have is a point.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from matchrt.bundle import Bundle
from matchrt.errors import MatchrtError
from matchrt.export.compare import relative_error
from matchrt.plugins import MatcherHooks
from matchrt.progress import Progress, stage
from matchrt.verify.bounds import EXACT, Bounds
from matchrt.verify.derive import derive_bundle
from matchrt.verify.location import Location, Point
from matchrt.verify.scopes import Graph
from matchrt.verify.sources import Failing, FromGraph, FromModules, Sizes, Source, Value
from matchrt.verify.subjects import How, Subject, Tensors, opened

if TYPE_CHECKING:
    from matchrt.verify.run import PairResult, VerifyRequest

Open = Callable[[Bundle], AbstractContextManager[Subject]]
BUDGET = 1 << 30
"""Bytes of tensors that are looked at in one go; what is beyond is looked at in a second go, inside the place found."""
GUESS = 1 << 18
"""Elements of a tensor whose size cannot be told beforehand."""
CAUSE = 160
"""Most characters of an error that a sentence quotes."""
JUMP = 8.0
"""An error this many times that of what a tensor is made from is a jump."""
FLOORS = {"fp32": 1e-5}
HALF_FLOOR = 4e-3
"""Relative errors below the floor are rounding, whatever they were before."""


def locate(
    request: VerifyRequest,
    bundle: Bundle,
    against: Bundle,
    hooks: MatcherHooks,
    results: Sequence[PairResult],
    bounds: Bounds,
    progress: Progress,
) -> Location:
    """Look into the network whose tensors differ most on equal inputs, on the pair where they do."""
    from matchrt.verify.run import opened_engine

    name, index = _worst(results, bounds)
    pair = results[index].pair
    with stage(progress, "locate the difference"):
        with opened(against, request.reference, hooks.plugins, progress) as reference:
            failing = Failing(name, pair.name, _inputs(reference, bundle, hooks, request, pair, name))

        def engine(probe: Bundle) -> AbstractContextManager[Subject]:
            probing: AbstractContextManager[Subject] = opened_engine(
                replace(request, bundle=probe.path), probe, hooks, progress
            )
            return probing

        graph = Graph(onnx.load(str(bundle.graph(name))))
        floor = FLOORS.get(request.engine.precision, HALF_FLOOR)
        search = Search(bundle, graph, failing, engine, floor)
        try:
            found = search.run(_source(request, bundle, against, hooks, failing))
            same = request.engine.backend == "onnxruntime" and request.engine.precision in EXACT and not request.emulate
            if found.point is None or same or request.reference.backend != "torch":
                return found
            return _finer(search, found, hooks)
        except (MatchrtError, ImportError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            cause = first if len(first) <= CAUSE else f"{first[: CAUSE - 1]}…"
            return _unknown(failing, f"inside it cannot be looked here: {cause} (--no-locate skips the look)")


def _worst(results: Sequence[PairResult], bounds: Bounds) -> tuple[str, int]:
    """The first network, in the order of steps, that falls short on equal inputs; else the one with the largest relative error."""
    from matchrt.verify.bounds import tensor_failure

    every = [(d, i) for i, r in enumerate(results) for d in r.equal]
    judged = ((d, i, rounding) for i, r in enumerate(results) for d, rounding in r.judged())
    failing = [(d, i) for d, i, rounding in judged if tensor_failure(d, bounds, rounding) is not None]
    if failing:
        order = list(dict.fromkeys(d.network for d, _ in every))
        first = min((d.network for d, _ in failing), key=order.index)
        every = [(d, i) for d, i in failing if d.network == first]
    worst, index = max(every, key=lambda e: e[0].relative)
    return worst.network, index


def _inputs(
    reference: Subject, bundle: Bundle, hooks: MatcherHooks, request: VerifyRequest, pair: object, name: str
) -> Tensors:
    """The network's inputs at its first step, as the reference's own way makes them."""
    from matchrt.images.read import read_image
    from matchrt.runtime.matcher import settings_of
    from matchrt.samples import SamplePair

    assert isinstance(pair, SamplePair)
    settings = settings_of(hooks, bundle, request.settings)
    tensors = dict(hooks.preprocess((read_image(pair.image0), read_image(pair.image1)), settings)[0])
    for step in bundle.manifest.steps:
        inputs = {n: tensors[s] for n, s in step.inputs.items()}
        if step.network == name:
            return inputs
        outputs = reference.run(step.network, inputs)
        tensors.update({t: outputs[n] for n, t in step.outputs.items()})
    raise AssertionError(f"no step runs {name!r}")


class Search:
    """The engine's graph, opened as often as needed with more outputs."""

    def __init__(self, bundle: Bundle, graph: Graph, failing: Failing, engine: Open, floor: float) -> None:
        self.bundle, self.graph, self.failing, self.engine, self.floor = bundle, graph, failing, engine, floor
        self.sizes = Sizes(graph, failing.inputs)
        self.points: dict[str, Point] = {}

    def run(self, source: Source) -> Location:
        """Compare at as many points as fit, then once more inside what was found, until there is nothing left to look at."""
        window: set[str] | None = None
        seen: set[str] = set()
        location = _unknown(self.failing, "no tensor inside the network could be compared")
        for _ in range(4):
            wanted = [t for t in source.tensors(self.graph) if (window is None or t in window) and t not in seen]
            chosen = self._within_budget(wanted, source)
            if not chosen:
                break
            seen.update(chosen)
            values = source.values(self.graph, chosen)
            self._compare(values)
            location, nodes = self._judge()
            if location.point is None:
                break
            window = {o for i in nodes for o in self.graph.nodes[i].output}
        return location

    def probe(self, engine: Open, tensors: Collection[str]) -> Tensors:
        """Values of `tensors` on an engine."""
        with tempfile.TemporaryDirectory(prefix="matchrt-probe-") as folder:
            model = self.graph.with_outputs(tensors)
            probe = derive_bundle(self.bundle, Path(folder) / "bundle", {self.failing.network: model}, only=True)
            with engine(probe) as subject:
                return subject.run(self.failing.network, self.failing.inputs)

    def _within_budget(self, wanted: list[str], source: Source) -> list[str]:
        chosen: list[str] = []
        total = 0
        for tensor in sorted(wanted, key=source.depth):
            size = 4 * (self.sizes.size(tensor) or GUESS)
            if total + size <= BUDGET or not chosen:
                total += size
                chosen.append(tensor)
        return sorted(chosen, key=lambda t: self.graph.maker.get(t, -1))

    def _compare(self, values: Sequence[Value]) -> None:
        outputs = self.graph.outputs
        tensors = list(dict.fromkeys(v.tensor for v in values if v.tensor not in self.graph.inputs))
        if not tensors:
            return
        made = self.probe(self.engine, [t for t in tensors if t not in outputs])
        for value in values:
            if value.tensor not in made or made[value.tensor].size != value.array.size:
                continue
            other = made[value.tensor].reshape(value.array.shape)
            error = relative_error(value.array, other)
            known = self.points.get(value.tensor)
            if known is None or error < known.error:
                gap = float(np.abs(value.array.astype(np.float64) - other).max()) if other.size else 0.0
                self.points[value.tensor] = Point(
                    name=value.name, tensor=value.tensor, error=error, inherited=0.0, max_abs=gap
                )

    def _judge(self) -> tuple[Location, list[int]]:
        """The first jump among the points so far, and the nodes between it and the points before."""
        order = sorted(self.points, key=lambda t: self.graph.maker.get(t, -1))
        behind = {t: self.graph.behind(t, self.points) for t in order}
        spurious = self._spurious(order, {t: sources for t, (sources, _) in behind.items()})
        kept = {t: self.points[t] for t in order if t not in spurious}
        points, nodes_of = [], {}
        for tensor, point in kept.items():
            sources, nodes = self.graph.behind(tensor, kept)
            inherited = max((kept[s].error for s in sources if s in kept), default=0.0)
            points.append(Point(**{**vars(point), "inherited": inherited}))
            nodes_of[tensor] = nodes
        jumps = [p for p in points if p.error > JUMP * max(p.inherited, self.floor / JUMP)]
        first = jumps[0] if jumps else None
        nodes = nodes_of[first.tensor] if first else []
        place = self.graph.place_of(nodes) if first else None
        names = self.graph.names_of(nodes)
        location = Location(
            network=self.failing.network,
            pair=self.failing.pair,
            place=place,
            point=first,
            nodes=names,
            culprit=names[0] if len(names) == 1 else None,
            points=tuple(points),
            sentence=_sentence(self.failing.network, place, first, names, points),
        )
        return location, nodes

    def _spurious(self, order: Sequence[str], behind: Mapping[str, Sequence[str]]) -> set[str]:
        """Points whose error is gone in everything that is made from them: another tensor was taken for the module's."""
        ahead: dict[str, list[str]] = {}
        for tensor in order:
            for source in behind[tensor]:
                ahead.setdefault(source, []).append(tensor)
        found: set[str] = set()
        for tensor in order:
            error, later = self.points[tensor].error, ahead.get(tensor, [])
            if error > 10 * self.floor and later and all(self.points[t].error < error / 30 for t in later):
                found.add(tensor)
        return found


def _source(request: VerifyRequest, bundle: Bundle, against: Bundle, hooks: MatcherHooks, failing: Failing) -> Source:
    if request.reference.backend == "torch":
        options = {**request.reference.options, "threads": request.reference.threads}
        return FromModules(bundle, hooks, options, failing)
    return _from_bundle(against, hooks, failing)


def _from_bundle(bundle: Bundle, hooks: MatcherHooks, failing: Failing) -> FromGraph:
    def run(graph: Graph, tensors: Collection[str]) -> Tensors:
        search = Search(bundle, graph, failing, lambda probe: opened(probe, How(), hooks.plugins), 0.0)
        return search.probe(search.engine, tensors)

    return FromGraph(bundle, failing.network, run)


def _finer(search: Search, found: Location, hooks: MatcherHooks) -> Location:
    """Whether the bundle's graph in float32 has the difference too; if not, node by node against it."""
    finer = Search(search.bundle, search.graph, search.failing, search.engine, search.floor)
    node = finer.run(_from_bundle(search.bundle, hooks, search.failing)).point
    if node is None:
        reason = (
            "the bundle's graph in float32 differs in the same way, so the fault is in the graph, not in the engine"
        )
        return replace(found, sentence=f"{found.sentence}; {reason}")
    reason = f"the bundle's own graph in float32 does not have it, so the fault is in the engine; it enters at node {node.name}"
    return replace(found, culprit=node.name, sentence=f"{found.sentence}; {reason}")


def _sentence(
    network: str, place: str | None, point: Point | None, nodes: Sequence[str], points: Sequence[Point]
) -> str:
    if point is None:
        worst = max((p.error for p in points), default=0.0)
        return f"in network {network!r} no point's error jumps: it grows little by little, up to {worst:.1e} at {len(points)} points"
    where = f"in {place}" if place else "in the network's own forward"
    shown = ", ".join(nodes[-3:]) + (f" and {len(nodes) - 3} before" if len(nodes) > 3 else "")
    return (
        f"the difference enters network {network!r} {where}: the relative error of {point.name or 'its output'} is {point.error:.1e}, "
        f"of what it is made from {point.inherited:.1e}; nodes: {shown}"
    )


def _unknown(failing: Failing, why: str) -> Location:
    sentence = f"the difference is in network {failing.network!r}; {why}"
    return Location(
        network=failing.network,
        pair=failing.pair,
        place=None,
        point=None,
        nodes=(),
        culprit=None,
        points=(),
        sentence=sentence,
    )
