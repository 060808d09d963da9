"""What each rule does to the names and tensors at hand (`apply` drives it)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from matchrt.errors import WeightsError
from matchrt.weights.layouts import join, split
from matchrt.weights.report import Origin
from matchrt.weights.rules import (
    Backfill,
    Concatenate,
    Constant,
    Drop,
    Permute,
    Refuse,
    Rename,
    Reshape,
    Rule,
    Same,
    Split,
    When,
)


@dataclass(frozen=True)
class Dropped:
    """A tensor that a rule left out: its name at that point, why, and the checkpoint keys it came from."""

    name: str
    reason: str
    origins: tuple[Origin, ...]


@dataclass(frozen=True)
class Item:
    """A tensor on its way, and the checkpoint keys it comes from."""

    tensor: torch.Tensor
    origins: tuple[Origin, ...]


@dataclass
class State:
    """Names as they are between two rules."""

    items: dict[str, Item]
    where: str
    dropped: list[Dropped] = field(default_factory=list)

    def fail(self, rule: Rule, message: str) -> WeightsError:
        """Return the error for `message`, naming the file and the rule."""
        return WeightsError(f"{self.where}: {message}", hint=f"It came up in the rule {rule!r}.")

    def matching(self, pattern: str) -> list[tuple[str, re.Match[str]]]:
        """Return the names that `pattern` matches as a whole, with their matches."""
        compiled = re.compile(pattern)
        return [(name, found) for name in self.items if (found := compiled.fullmatch(name))]

    def replace(self, rule: Rule, taken: Mapping[str, Sequence[tuple[str, Item]]]) -> None:
        """Put each taken name's successors in its place, refusing two tensors under one name."""
        result: dict[str, Item] = {}
        for name, item in self.items.items():
            for new, successor in taken.get(name, ((name, item),)):
                if new in result:
                    first, second = _origin_text(result[new]), _origin_text(successor)
                    raise self.fail(rule, f"two keys end up as {new!r}: {first} and {second}")
                if not new:
                    raise self.fail(rule, f"{_origin_text(item)} ends up with an empty name")
                result[new] = successor
        self.items = result

    def drop(self, name: str, reason: str) -> None:
        """Leave `name` out for `reason`."""
        self.dropped.append(Dropped(name, reason, self.items[name].origins))
        del self.items[name]


def _origin_text(item: Item) -> str:
    return " + ".join(repr(origin.key) for origin in item.origins)


def act(state: State, rule: Rule) -> None:
    """Apply one rule to `state`, for every kind but `When` and `Backfill`, which need more than one file."""
    if isinstance(rule, Rename):
        _rename(state, rule)
    elif isinstance(rule, Drop):
        _drop(state, rule)
    elif isinstance(rule, Refuse):
        _refuse(state, rule)
    elif isinstance(rule, Constant):
        _constant(state, rule)
    elif isinstance(rule, Split):
        _split(state, rule)
    elif isinstance(rule, Concatenate):
        _concatenate(state, rule)
    elif isinstance(rule, Same):
        _same(state, rule)
    elif isinstance(rule, Reshape):
        _reshape(state, rule)
    elif isinstance(rule, Permute):
        _permute(state, rule)
    elif isinstance(rule, (When, Backfill)):
        raise state.fail(rule, "this rule cannot stand here")


def _refuse(state: State, rule: Refuse) -> None:
    found = state.matching(rule.pattern)
    if found:
        name, _ = found[0]
        raise WeightsError(f"{state.where} {rule.reason} ({_origin_text(state.items[name])})", hint=rule.hint)


def _rename(state: State, rule: Rename) -> None:
    found = dict(state.matching(rule.match))
    state.replace(rule, {n: [(rule.to.format(**_groups(m)), state.items[n])] for n, m in found.items()})


def _groups(match: re.Match[str]) -> dict[str, str]:
    return {name: value or "" for name, value in match.groupdict().items()}


def _drop(state: State, rule: Drop) -> None:
    for name, _ in state.matching(rule.pattern):
        state.drop(name, rule.reason)


def _constant(state: State, rule: Constant) -> None:
    expected = torch.tensor(rule.values, dtype=torch.float64)
    for name, _ in state.matching(rule.pattern):
        tensor = state.items[name].tensor
        if tensor.numel() != expected.numel():
            raise state.fail(rule, f"{name!r} has {tensor.numel()} values, the network has {expected.numel()} built in")
        if tensor.device.type != "meta":
            difference = (tensor.double().flatten() - expected).abs()
            if not bool((difference <= rule.tolerance).all()):
                values = ", ".join(f"{v:.6g}" for v in tensor.double().flatten()[:6].tolist())
                raise state.fail(rule, f"{name!r} is [{values}], which differs from what the network has built in")
        state.drop(name, rule.reason)


def _split(state: State, rule: Split) -> None:
    taken = {}
    for name, match in state.matching(rule.pattern):
        item = state.items[name]
        try:
            parts = split(item.tensor, len(rule.targets), rule.axis, rule.sizes, rule.layout)
        except ValueError as error:
            raise state.fail(rule, f"{name!r} {list(item.tensor.shape)} cannot be split: {error}") from error
        targets = [target.format(**_groups(match)) for target in rule.targets]
        taken[name] = [(new, Item(part, item.origins)) for new, part in zip(targets, parts, strict=True)]
    state.replace(rule, taken)


def _grouped(state: State, rule: Concatenate | Same) -> list[tuple[str, list[str]]]:
    """Return (target, source names in order) for every complete group; refuse incomplete ones."""
    groups: dict[tuple[tuple[str, str], ...], dict[int, str]] = {}
    for index, pattern in enumerate(rule.sources):
        for name, match in state.matching(pattern):
            group = groups.setdefault(tuple(sorted(_groups(match).items())), {})
            if index in group:
                raise state.fail(rule, f"{group[index]!r} and {name!r} both match the source {pattern!r}")
            group[index] = name
    result = []
    for key, found in groups.items():
        target = rule.target.format(**dict(key))
        if len(found) < len(rule.sources):
            lacking = [rule.sources[i] for i in range(len(rule.sources)) if i not in found]
            there = ", ".join(repr(name) for name in found.values())
            raise state.fail(
                rule, f"{target!r} needs {len(rule.sources)} keys; there is {there}, but nothing for {lacking[0]!r}"
            )
        result.append((target, [found[i] for i in range(len(rule.sources))]))
    return result


def _merge(state: State, rule: Concatenate | Same, merged: list[tuple[str, list[str], torch.Tensor]]) -> None:
    taken: dict[str, list[tuple[str, Item]]] = {}
    for target, names, tensor in merged:
        origins = tuple(dict.fromkeys(origin for name in names for origin in state.items[name].origins))
        if any(name in taken for name in names) or len(set(names)) < len(names):
            raise state.fail(rule, f"a key is used twice for {target!r}")
        taken.update({name: [] for name in names})
        taken[names[0]] = [(target, Item(tensor, origins))]
    state.replace(rule, taken)


def _concatenate(state: State, rule: Concatenate) -> None:
    merged = []
    for target, names in _grouped(state, rule):
        parts = [state.items[name].tensor for name in names]
        try:
            merged.append((target, names, join(parts, rule.axis, rule.layout)))
        except ValueError as error:
            raise state.fail(rule, f"{', '.join(map(repr, names))} cannot be joined: {error}") from error
    _merge(state, rule, merged)


def _same(state: State, rule: Same) -> None:
    merged = []
    for target, names in _grouped(state, rule):
        first = state.items[names[0]].tensor
        for name in names[1:]:
            if not equal_bits(first, state.items[name].tensor):
                raise state.fail(rule, f"{names[0]!r} and {name!r} must be the same tensor, and differ")
        merged.append((target, names, first))
    _merge(state, rule, merged)


def equal_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors agree in shape, dtype and every bit (NaN equals the same NaN). Meta: shape and dtype only."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.device.type == "meta" or b.device.type == "meta":
        return True
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


def _reshape(state: State, rule: Reshape) -> None:
    for name, _ in state.matching(rule.pattern):
        item = state.items[name]
        try:
            state.items[name] = Item(item.tensor.reshape(rule.shape), item.origins)
        except RuntimeError as error:
            shapes = f"{list(item.tensor.shape)} to {list(rule.shape)}"
            raise state.fail(rule, f"{name!r} cannot be reshaped from {shapes}") from error


def _permute(state: State, rule: Permute) -> None:
    for name, _ in state.matching(rule.pattern):
        item = state.items[name]
        if item.tensor.ndim != len(rule.axes):
            raise state.fail(rule, f"{name!r} has {item.tensor.ndim} axes, the rule permutes {len(rule.axes)}")
        state.items[name] = Item(item.tensor.permute(rule.axes), item.origins)
