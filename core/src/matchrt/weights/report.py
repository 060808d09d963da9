"""The account of a load: every checkpoint key and every network parameter in exactly one class. No torch.

A bundle stores this as JSON, and reading a bundle must not need torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

KeyClass = Literal["loaded", "backfilled", "dropped", "unexpected", "misshapen"]
ParameterClass = Literal["loaded", "backfilled", "missing", "misshapen", "allowed_missing"]

KEY_CLASSES: tuple[KeyClass, ...] = ("loaded", "backfilled", "dropped", "unexpected", "misshapen")
"""What can become of a key in a file."""
PARAMETER_CLASSES: tuple[ParameterClass, ...] = ("loaded", "backfilled", "missing", "misshapen", "allowed_missing")
"""What can become of a parameter or buffer of the network."""


@dataclass(frozen=True, order=True)
class Origin:
    """One key of one file: the source's name (`checkpoint`, or a back-fill's) and the key as the file has it."""

    source: str
    key: str

    def __str__(self) -> str:
        return f"{self.source}:{self.key}"


@dataclass(frozen=True)
class KeyEntry:
    """A checkpoint key's fate. `targets` are network names it went to; `reason` says why it was dropped or refused."""

    origin: Origin
    kind: KeyClass
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    targets: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class ParameterEntry:
    """A network parameter's or buffer's fate.

    `shape`, `dtype` and `nbytes` are the network's; `found_shape` and `found_dtype` what the rules produced (None if
    nothing), so a difference in dtype alone is a conversion that was made. `aliases` are further names of the same
    storage, which are counted here and nowhere else. `reason` is the `--allow-missing` pattern or the misfit.
    """

    name: str
    kind: ParameterClass
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    origins: tuple[Origin, ...] = ()
    found_shape: tuple[int, ...] | None = None
    found_dtype: str | None = None
    aliases: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class WeightReport:
    """The whole account. `absent_sources` are (source, pattern) pairs of back-fills that were not given."""

    keys: tuple[KeyEntry, ...]
    parameters: tuple[ParameterEntry, ...]
    allow_missing: tuple[str, ...] = ()
    absent_sources: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is missing, unexpected or misshapen."""
        return not (self.of_keys("unexpected", "misshapen") or self.of_parameters("missing", "misshapen"))

    def of_keys(self, *kinds: KeyClass) -> tuple[KeyEntry, ...]:
        """Return the checkpoint keys of these classes, in file order."""
        return tuple(entry for entry in self.keys if entry.kind in kinds)

    def of_parameters(self, *kinds: ParameterClass) -> tuple[ParameterEntry, ...]:
        """Return the network parameters and buffers of these classes, in the network's order."""
        return tuple(entry for entry in self.parameters if entry.kind in kinds)

    @property
    def conversions(self) -> tuple[ParameterEntry, ...]:
        """Parameters whose dtype is not the file's, so that loading converts them."""
        filled = self.of_parameters("loaded", "backfilled")
        return tuple(entry for entry in filled if entry.found_dtype != entry.dtype)

    def counts(self) -> dict[str, int]:
        """Return one figure for each class: parameters where the network has a say, keys for the rest."""
        keys = Counter(entry.kind for entry in self.keys)
        parameters = Counter(entry.kind for entry in self.parameters)
        return {
            "loaded": parameters["loaded"],
            "backfilled": parameters["backfilled"],
            "dropped": keys["dropped"],
            "missing": parameters["missing"],
            "unexpected": keys["unexpected"],
            "misshapen": parameters["misshapen"],
            "allowed_missing": parameters["allowed_missing"],
        }

    def totals(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return count, percentage of count, and bytes for every class, of `keys` and of `parameters`."""
        return {"keys": _totals(KEY_CLASSES, self.keys), "parameters": _totals(PARAMETER_CLASSES, self.parameters)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-able data, from which `from_dict` makes an equal report. Defaults are left out."""
        return {
            "counts": self.counts(),
            "totals": self.totals(),
            "allow_missing": list(self.allow_missing),
            "absent_sources": [list(pair) for pair in self.absent_sources],
            "keys": [_entry_dict(entry) for entry in self.keys],
            "parameters": [_entry_dict(entry) for entry in self.parameters],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WeightReport:
        """Read back what `to_dict` wrote; raise `KeyError`, `TypeError` or `ValueError` for anything else."""
        return cls(
            keys=tuple(_key_entry(entry) for entry in data["keys"]),
            parameters=tuple(_parameter_entry(entry) for entry in data["parameters"]),
            allow_missing=tuple(data["allow_missing"]),
            absent_sources=tuple((str(source), str(pattern)) for source, pattern in data["absent_sources"]),
        )


def _totals(kinds: tuple[str, ...], entries: tuple[KeyEntry, ...] | tuple[ParameterEntry, ...]) -> dict[str, Any]:
    result = {}
    for kind in kinds:
        found = [entry for entry in entries if entry.kind == kind]
        percent = round(100 * len(found) / len(entries), 2) if entries else 0.0
        result[kind] = {"count": len(found), "percent": percent, "bytes": sum(entry.nbytes for entry in found)}
    return result


def _entry_dict(entry: KeyEntry | ParameterEntry) -> dict[str, Any]:
    return {
        item.name: _plain(getattr(entry, item.name))
        for item in fields(entry)
        if item.default is MISSING or getattr(entry, item.name) != item.default
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Origin):
        return [value.source, value.key]
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _key_entry(data: Mapping[str, Any]) -> KeyEntry:
    if data["kind"] not in KEY_CLASSES:
        raise ValueError(f"unknown class of checkpoint key: {data['kind']!r}")
    return KeyEntry(
        origin=Origin(*data["origin"]),
        kind=data["kind"],
        shape=tuple(data["shape"]),
        dtype=data["dtype"],
        nbytes=data["nbytes"],
        targets=tuple(data.get("targets", ())),
        reason=data.get("reason", ""),
    )


def _parameter_entry(data: Mapping[str, Any]) -> ParameterEntry:
    if data["kind"] not in PARAMETER_CLASSES:
        raise ValueError(f"unknown class of parameter: {data['kind']!r}")
    found_shape = data.get("found_shape")
    return ParameterEntry(
        name=data["name"],
        kind=data["kind"],
        shape=tuple(data["shape"]),
        dtype=data["dtype"],
        nbytes=data["nbytes"],
        origins=tuple(Origin(*pair) for pair in data.get("origins", ())),
        found_shape=None if found_shape is None else tuple(found_shape),
        found_dtype=data.get("found_dtype"),
        aliases=tuple(data.get("aliases", ())),
        reason=data.get("reason", ""),
    )
