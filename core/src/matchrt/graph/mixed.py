"""Find the cheapest set of float32 nodes with which a half-precision graph still meets a figure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from matchrt.errors import UsageError
from matchrt.graph.edit import copy_model
from matchrt.graph.precision import PrecisionRecord, decide, name_nodes, to_half
from matchrt.model import PrecisionRule

Measure = Callable[[onnx.ModelProto, tuple[PrecisionRule, ...]], float]
"""A figure for a graph, which `to_half` made by these rules; smaller is better: for example the mean distance in pixels to the float32
matches. NaN counts as failed."""

MOST_BLOCKS = 16


@dataclass(frozen=True)
class Trial:
    """One evaluation: the blocks kept in float32, how many nodes that are, its figure, and whether it passed."""

    blocks: tuple[str, ...]
    kept: int
    figure: float
    passed: bool


@dataclass(frozen=True)
class MixedResult:
    """The chosen graph and everything that was tried, in order.

    `rules` are the given rules with one more for each block that stays in float32: `to_half` with them makes `model` again.
    """

    model: onnx.ModelProto
    record: PrecisionRecord
    passed: bool
    rules: tuple[PrecisionRule, ...]
    trials: tuple[Trial, ...]


def search_mixed(
    model: onnx.ModelProto,
    measure: Measure,
    limit: float,
    *,
    rules: Sequence[PrecisionRule] = (),
    network: str = "",
    budget: int = 32,
) -> MixedResult:
    """The cheapest passing graph found with at most `budget` calls of `measure`; passing means figure <= `limit`.

    Starts from `to_half` with `rules`. If that fails, each block (the nodes of one module path) is kept in float32 alone to see what
    it is worth; blocks are then added in that order until the figure is met (found by bisection), and those that are not needed are
    given back. Where nothing passes, the result is the trial with the best figure and `passed` is False.
    Raises `UsageError` for a budget below 1.
    """
    if budget < 1:
        raise UsageError(f"a search needs a budget of at least 1 evaluation, not {budget}")
    search = _Search(name_nodes(copy_model(model)), measure, limit, tuple(rules), network, budget)
    if search.passes(()) or not search.left:
        return search.result()
    names = sorted(search.blocks)
    if not search.passes(tuple(names)) or not search.left:
        return search.result()
    order = search.ranked(names)
    low, high = 0, len(order)  # the first `high` blocks pass, the first `low` do not
    while high - low > 1 and search.left:
        middle = (low + high) // 2
        low, high = (low, middle) if search.passes(tuple(order[:middle])) else (middle, high)
    chosen = order[:high]
    for name in order[:high][::-1]:
        rest = [n for n in chosen if n != name]
        if search.left and rest and search.passes(tuple(rest)):
            chosen = rest
    return search.result()


def blocks_of(model: onnx.ModelProto, kept: Sequence[str], most: int = MOST_BLOCKS) -> dict[str, tuple[str, ...]]:
    """Names of the nodes that may compute in half, by module path; paths are cut from the right until at most `most` remain.

    Nodes without a path, and what still is too many, fall into runs of neighbours called `nodes A-B`.
    """
    names = [n.name for n in model.graph.node if n.name not in set(kept)]
    paths = {n: n.rpartition("/")[0] for n in names}
    if any(paths.values()):
        depth = max(p.count(".") + 1 for p in paths.values())
        for parts in range(depth, 0, -1):
            groups: dict[str, list[str]] = {}
            for name in names:
                groups.setdefault(".".join(paths[name].split(".")[:parts]) or "(network)", []).append(name)
            if len(groups) <= most:
                return {k: tuple(v) for k, v in groups.items()}
    size = max(1, -(-len(names) // most))
    runs = [names[i : i + size] for i in range(0, len(names), size)]
    return {f"nodes {i * size}-{i * size + len(r) - 1}": tuple(r) for i, r in enumerate(runs)}


class _Search:
    def __init__(
        self,
        model: onnx.ModelProto,
        measure: Measure,
        limit: float,
        rules: tuple[PrecisionRule, ...],
        network: str,
        budget: int,
    ) -> None:
        self.model, self.measure, self.limit, self.rules, self.network = model, measure, limit, rules, network
        self.left = budget
        kept = [k.node for k in decide(model, rules, network=network).kept]
        self.blocks = blocks_of(model, kept)
        self.trials: dict[tuple[str, ...], Trial] = {}

    def rules_for(self, blocks: tuple[str, ...]) -> tuple[PrecisionRule, ...]:
        """The given rules and one for each block."""
        own = []
        for block in blocks:
            pattern = "|".join(re.escape(n) for n in self.blocks[block])
            own.append(PrecisionRule(pattern=f"^(?:{pattern})$", reason=f"mixed precision: block {block!r} was needed"))
        return (*self.rules, *own)

    def trial(self, blocks: tuple[str, ...]) -> Trial:
        """Measure once; a repeated question is answered from memory."""
        key = tuple(sorted(blocks))
        if key not in self.trials:
            self.left -= 1
            rules = self.rules_for(key)
            half, record = to_half(self.model, rules, network=self.network)
            figure = float(self.measure(half, rules))
            self.trials[key] = Trial(key, len(record.kept), figure, figure <= self.limit)
        return self.trials[key]

    def passes(self, blocks: tuple[str, ...]) -> bool:
        """Whether the figure is met."""
        return self.trial(blocks).passed

    def ranked(self, names: list[str]) -> list[str]:
        """Blocks by what keeping each alone is worth, best first; a third of the budget stays for choosing among them."""
        reserve = max(4, self.left // 3)
        figures = {}
        for name in sorted(names, key=lambda n: -len(self.blocks[n])):
            if self.left > reserve:
                figure = self.trial((name,)).figure
                figures[name] = figure if figure == figure else float("inf")
        return sorted(names, key=lambda n: (figures.get(n, float("inf")), len(self.blocks[n])))

    def result(self) -> MixedResult:
        """The passing trial that keeps fewest nodes, else the one with the best figure."""
        tried = tuple(self.trials.values())
        passing = [t for t in tried if t.passed]
        best = (
            min(passing, key=lambda t: t.kept)
            if passing
            else min(tried, key=lambda t: (t.figure != t.figure, t.figure))
        )
        rules = self.rules_for(best.blocks)
        half, record = to_half(self.model, rules, network=self.network)
        return MixedResult(half, record, best.passed, rules, tried)
