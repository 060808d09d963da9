"""Apply weight rules to checkpoints, keeping for every tensor where it came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from matchrt.errors import WeightsError
from matchrt.weights.actions import Dropped, Item, State, act
from matchrt.weights.readers import Checkpoint
from matchrt.weights.report import Origin
from matchrt.weights.rules import Backfill, Rule, When

PRIMARY = "checkpoint"
"""The source name of the file that the user gave; every other source is a back-fill."""


@dataclass(frozen=True)
class Remapped:
    """The outcome of the rules.

    `tensors` and `origins` have the same keys: names after all rules. `inputs` lists every key of every source that
    took part, with its shape, dtype name and bytes. `outside` are tensors of a second source that its `Backfill`
    does not ask for. `absent` are the (source, pattern) pairs of `Backfill`s whose file was not given.
    `primary` is the name of the main source.
    """

    tensors: Mapping[str, torch.Tensor]
    origins: Mapping[str, tuple[Origin, ...]]
    dropped: tuple[Dropped, ...]
    inputs: Mapping[Origin, torch.Tensor]
    outside: Mapping[str, tuple[Origin, ...]] = field(default_factory=dict)
    absent: tuple[tuple[str, str], ...] = ()
    primary: str = PRIMARY


def apply_rules(checkpoints: Mapping[str, Checkpoint], rules: Iterable[Rule], *, primary: str = PRIMARY) -> Remapped:
    """Apply `rules` in order to `checkpoints[primary]`; the others are the named sources of `Backfill`.

    Raises `WeightsError` when two keys collide, when sources of a `Concatenate` or `Same` are incomplete or differ,
    when a `Constant` has another value, or when a layout does not divide. Nothing is copied unless a rule must.
    """
    if primary not in checkpoints:
        raise WeightsError(f"no weights were given under the name {primary!r}")
    return remap(
        {name: (str(file.path), file.tensors, file.original_names) for name, file in checkpoints.items()},
        rules,
        primary=primary,
    )


Source = tuple[str, Mapping[str, torch.Tensor], Mapping[str, str]]
"""A path for messages, tensors by canonical name, and {canonical name: the file's own name}."""


def remap(sources: Mapping[str, Source], rules: Iterable[Rule], *, primary: str = PRIMARY) -> Remapped:
    """Apply rules to plain tensors by name. Meta tensors are allowed: value checks are then left out."""
    run = _Run(sources, primary)
    state = run.start(primary)
    run.apply(state, rules)
    run.check_all_used()
    dropped = [*state.dropped, *(entry for second in run.filled.values() for entry in second.dropped)]
    return Remapped(
        tensors={name: item.tensor for name, item in state.items.items()},
        origins={name: item.origins for name, item in state.items.items()},
        dropped=tuple(dropped),
        inputs=run.inputs,
        outside=run.outside,
        absent=tuple(run.absent),
        primary=primary,
    )


@dataclass
class _Run:
    """What is gathered over all sources while rules are applied."""

    sources: Mapping[str, Source]
    primary: str
    inputs: dict[Origin, torch.Tensor] = field(default_factory=dict)
    outside: dict[str, tuple[Origin, ...]] = field(default_factory=dict)
    absent: list[tuple[str, str]] = field(default_factory=list)
    filled: dict[str, State] = field(default_factory=dict)

    def start(self, source: str) -> State:
        path, tensors, originals = self.sources[source]
        items = {}
        for key, tensor in tensors.items():
            origin = Origin(source, originals.get(key, key))
            self.inputs[origin] = tensor
            items[key] = Item(tensor, (origin,))
        return State(items, path)

    def apply(self, state: State, rules: Iterable[Rule]) -> None:
        for rule in rules:
            if isinstance(rule, When):
                self.apply(state, rule.rules if state.matching(rule.pattern) else rule.otherwise)
            elif isinstance(rule, Backfill):
                self.fill(state, rule)
            else:
                act(state, rule)

    def fill(self, state: State, rule: Backfill) -> None:
        if rule.source in self.filled or rule.source == self.primary:
            raise state.fail(rule, f"the source {rule.source!r} is used twice")
        if rule.source not in self.sources:
            self.absent.append((rule.source, rule.pattern))
            return
        second = self.filled[rule.source] = self.start(rule.source)
        self.apply(second, rule.rules)
        wanted = re.compile(rule.pattern)
        for name in list(second.items):
            if not wanted.fullmatch(name):
                self.outside[f"{rule.source}:{name}"] = second.items[name].origins
            elif name in state.items:
                second.drop(name, "the checkpoint has its own")
            else:
                state.items[name] = second.items[name]

    def check_all_used(self) -> None:
        unused = sorted(set(self.sources) - set(self.filled) - {self.primary})
        if unused:
            known = sorted({*self.filled, *(source for source, _ in self.absent)})
            path = self.sources[unused[0]][0]
            raise WeightsError(
                f"{path} was given as {unused[0]!r}, and no rule of this matcher takes weights from it",
                hint=f"Sources that its rules know: {', '.join(known) or 'none'}.",
            )
