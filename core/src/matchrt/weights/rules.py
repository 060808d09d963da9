"""The rules that take a checkpoint's key names and layouts to a network's. No torch: plugins return these from a hook.

Rules are applied in order, and each sees the names that the rules before it left. A rule that matches nothing does
nothing, so one list may serve several namings of the same weights; `When` scopes rules to one naming.

Patterns are Python regular expressions and must match a *whole* key (`re.fullmatch`). Templates are
`str.format` strings over the pattern's named groups: pattern `self_attn\\.(?P<i>\\d+)\\.(?P<rest>.+)` with template
`transformers.{i}.self_attn.{rest}`. A rule that would write two tensors under one name is an error naming both.

All classes here are frozen and raise `matchrt.errors.PluginError` when they are built with a pattern that does
not compile, a template field that its pattern lacks, or an impossible layout.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Union

from matchrt.errors import PluginError


def _compile(pattern: str, owner: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise PluginError(f"{owner}: the pattern {pattern!r} is not a regular expression: {error}") from error


def _fields(template: str, owner: str) -> set[str]:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise PluginError(f"{owner}: the template {template!r} is malformed: {error}") from error
    fields = {name for _, name, _, _ in parsed if name is not None}
    bad = sorted(name for name in fields if not name.isidentifier())
    if bad:
        raise PluginError(f"{owner}: the template {template!r} has fields that are not plain names: {', '.join(bad)}")
    return fields


def _check_template(template: str, pattern: re.Pattern[str], owner: str) -> None:
    lacking = sorted(_fields(template, owner) - set(pattern.groupindex))
    if lacking:
        raise PluginError(
            f"{owner}: the template {template!r} uses {', '.join(lacking)}, "
            f"which the pattern {pattern.pattern!r} has no named group for"
        )


def _check_reason(reason: str, owner: str) -> None:
    if not reason.strip():
        raise PluginError(f"{owner}: a reason is required, because the weight report shows it")


def _check_same_groups(patterns: list[re.Pattern[str]], owner: str) -> None:
    first = set(patterns[0].groupindex)
    for pattern in patterns[1:]:
        if set(pattern.groupindex) != first:
            raise PluginError(
                f"{owner}: all source patterns need the same named groups; {patterns[0].pattern!r} has "
                f"{sorted(first)}, {pattern.pattern!r} has {sorted(pattern.groupindex)}"
            )


def _as_tuple(value: object, what: str, owner: str) -> None:
    if not isinstance(value, tuple):
        raise PluginError(f"{owner}: {what} must be a tuple, not {type(value).__name__}")


@dataclass(frozen=True)
class Interleave:
    """How the rows of a joined tensor are ordered, when they are not simply one part after the other.

    Each part's rows are read as (head, dim), row-major, with `heads` heads. `order` is a permutation of the words
    `head`, `dim` and `part`, outermost first, and gives the order of the joined rows. LightGlue's `Wqkv` is
    `Interleave(heads=4)`: rows (head, dim, part), parts q, k, v. `part head dim` is plain concatenation.
    """

    heads: int
    order: str = "head dim part"

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise PluginError(f"Interleave: heads must be at least 1, not {self.heads}")
        if sorted(self.order.split()) != ["dim", "head", "part"]:
            raise PluginError(f"Interleave: order {self.order!r} is not a permutation of 'head dim part'")


@dataclass(frozen=True)
class Rename:
    """Give every key that `match` matches the name that `to` spells. Built by `exact`, `prefix` or `pattern`."""

    match: str
    to: str

    def __post_init__(self) -> None:
        _check_template(self.to, _compile(self.match, "Rename"), "Rename")

    @classmethod
    def exact(cls, old: str, new: str) -> Rename:
        """Rename the one key `old` to `new`."""
        return cls(re.escape(old), _literal(new))

    @classmethod
    def prefix(cls, old: str, new: str) -> Rename:
        """Replace the leading text `old` by `new` (either may be empty) in every key that starts with `old`."""
        return cls(re.escape(old) + "(?P<rest>.*)", _literal(new) + "{rest}")

    @classmethod
    def pattern(cls, regex: str, template: str) -> Rename:
        """Rename every key that `regex` matches as a whole to `template` over its named groups."""
        return cls(regex, template)


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@dataclass(frozen=True)
class Drop:
    """Leave out every key that `pattern` matches; `reason` (one phrase) is shown in the weight report."""

    pattern: str
    reason: str

    def __post_init__(self) -> None:
        _compile(self.pattern, "Drop")
        _check_reason(self.reason, "Drop")


@dataclass(frozen=True)
class Refuse:
    """Refuse a file that has a key which `pattern` matches: `reason` completes "the file …", `hint` says what to give instead."""

    pattern: str
    reason: str
    hint: str

    def __post_init__(self) -> None:
        _compile(self.pattern, "Refuse")
        _check_reason(self.reason, "Refuse")


@dataclass(frozen=True)
class Constant:
    """Check that a checkpoint buffer holds known values, then leave it out with `reason`.

    `values` are compared with the flattened tensor, in float64, within the absolute `tolerance`. A different count
    or value is an error: the file was made with other settings than the network has built in.
    """

    pattern: str
    values: tuple[float, ...]
    reason: str
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        _compile(self.pattern, "Constant")
        _as_tuple(self.values, "values", "Constant")
        _check_reason(self.reason, "Constant")


@dataclass(frozen=True)
class Split:
    """Cut every tensor that `pattern` matches along `axis` into one tensor for each template in `targets`.

    Parts are equal in size, or have `sizes` elements along `axis`. `layout` says that the rows are interleaved.
    """

    pattern: str
    targets: tuple[str, ...]
    axis: int = 0
    sizes: tuple[int, ...] | None = None
    layout: Interleave | None = None

    def __post_init__(self) -> None:
        compiled = _compile(self.pattern, "Split")
        _as_tuple(self.targets, "targets", "Split")
        for target in self.targets:
            _check_template(target, compiled, "Split")
        if len(self.targets) < 2:
            raise PluginError(f"Split: {self.pattern!r} needs at least two targets")
        if self.sizes is not None and len(self.sizes) != len(self.targets):
            raise PluginError(f"Split: {len(self.sizes)} sizes for {len(self.targets)} targets")
        if self.sizes is not None and self.layout is not None:
            raise PluginError("Split: give sizes or a layout, not both")


@dataclass(frozen=True)
class Concatenate:
    """Join tensors along `axis`, in the order of `sources`, into `target`.

    `sources` are patterns with the same named groups; keys whose groups agree are joined. When some of the sources
    of one target are there and others are not, that is an error. `layout` interleaves rows instead of appending.
    """

    sources: tuple[str, ...]
    target: str
    axis: int = 0
    layout: Interleave | None = None

    def __post_init__(self) -> None:
        _check_sources(self.sources, self.target, "Concatenate")


@dataclass(frozen=True)
class Same:
    """Collapse tensors that must be equal bit for bit (shape, dtype, bytes) into one under `target`.

    `sources` are patterns with the same named groups, matched up as in `Concatenate`. Different tensors are an error.
    """

    sources: tuple[str, ...]
    target: str

    def __post_init__(self) -> None:
        _check_sources(self.sources, self.target, "Same")


def _check_sources(sources: tuple[str, ...], target: str, owner: str) -> None:
    _as_tuple(sources, "sources", owner)
    if len(sources) < 2:
        raise PluginError(f"{owner}: {target!r} needs at least two sources")
    compiled = [_compile(source, owner) for source in sources]
    _check_same_groups(compiled, owner)
    _check_template(target, compiled[0], owner)


@dataclass(frozen=True)
class Reshape:
    """Give every tensor that `pattern` matches the shape `shape` (at most one -1), row-major."""

    pattern: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _compile(self.pattern, "Reshape")
        _as_tuple(self.shape, "shape", "Reshape")
        if any(size < -1 for size in self.shape) or self.shape.count(-1) > 1:
            raise PluginError(f"Reshape: {self.shape} is not a shape with at most one -1")


@dataclass(frozen=True)
class Permute:
    """Reorder the axes of every tensor that `pattern` matches, as `torch.permute` does."""

    pattern: str
    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        _compile(self.pattern, "Permute")
        _as_tuple(self.axes, "axes", "Permute")
        if sorted(self.axes) != list(range(len(self.axes))):
            raise PluginError(f"Permute: {self.axes} is not a permutation of 0..{len(self.axes) - 1}")


@dataclass(frozen=True)
class Backfill:
    """Take what the checkpoint lacks from the second file that is known as `source`.

    `rules` are applied to the second file alone; of the result, names that `pattern` matches are added where the
    checkpoint has no such name yet. Names that it has already keep the checkpoint's tensor, and the second file's
    is reported as dropped; names outside `pattern` are reported as unexpected, so drop them in `rules`, with a
    reason. Without that file nothing happens here, and what is missing is reported with `source` as its remedy.
    """

    pattern: str
    source: str
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        _compile(self.pattern, "Backfill")
        _as_tuple(self.rules, "rules", "Backfill")
        if any(isinstance(rule, Backfill) for rule in self.rules):
            raise PluginError("Backfill: a second source cannot be back-filled itself")


@dataclass(frozen=True)
class When:
    """Apply `rules` only when some key matches `pattern` (else `otherwise`): one branch for each naming of a file."""

    pattern: str
    rules: tuple[Rule, ...]
    otherwise: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        _compile(self.pattern, "When")
        _as_tuple(self.rules, "rules", "When")
        _as_tuple(self.otherwise, "otherwise", "When")


Rule = Union[Rename, Drop, Refuse, Constant, Split, Concatenate, Same, Reshape, Permute, Backfill, When]  # noqa: UP007
"""Any rule; a plugin's `weight_rules` hook returns a sequence of these."""


def block_chunks(prefix: str) -> Rename:
    """The rule that undoes BlockChunk: `{prefix}blocks.C.N.…` becomes `{prefix}blocks.N.…`.

    DINOv2's FSDP layout groups transformer blocks in chunks; N is already the block's index in the whole network
    (`block_chunks` in dinov2's `vision_transformer.py`). Flat names pass unchanged. `prefix` is literal and may be
    empty.
    """
    return Rename.pattern(
        re.escape(prefix) + r"blocks\.\d+\.(?P<block>\d+)\.(?P<rest>.+)", _literal(prefix) + "blocks.{block}.{rest}"
    )
