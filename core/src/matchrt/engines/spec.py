"""What identifies an engine. Two engines have one key exactly if one may stand in for the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from matchrt.backends.building import Profile
from matchrt.errors import BackendError

KEY_VERSION = 1
"""Raised when the meaning of a field changes: then no older engine is found any more."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """Everything that decides what an engine is.

    `graph_sha256` covers the prepared graph with its weights, side file included; `kept_sha256` the nodes that layer constraints hold
    to float32, where the precision is not in the graph. `profiles` are in the order of the network's inputs, `options` by name.
    An engine is built either for the device (`compute_capability`, `gpu`) or for `targets`.
    """

    graph_sha256: str
    backend: str
    backend_version: str
    precision: str
    profiles: tuple[Profile, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    kept_sha256: str = ""
    compute_capability: str = ""
    gpu: str = ""
    targets: tuple[str, ...] = ()
    platform: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values by field."""
        return {**asdict(self), "options": dict(self.options)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EngineSpec:
        """The inverse of `to_dict` on parsed JSON. Raises `BackendError` for what is no specification."""
        try:
            profiles = tuple(
                Profile(p["input"], tuple(p["min"]), tuple(p["opt"]), tuple(p["max"])) for p in data["profiles"]
            )
            options = tuple(sorted((str(n), v) for n, v in dict(data["options"]).items()))
            plain = {n: data[n] for n in (f.name for f in fields(cls)) if n not in ("profiles", "options", "targets")}
            return cls(profiles=profiles, options=options, targets=tuple(data["targets"]), **plain)
        except (KeyError, TypeError, ValueError) as error:
            raise BackendError(f"not an engine specification: {type(error).__name__} {error}") from None

    def key(self) -> str:
        """sha256 over the canonical JSON of all fields, in hexadecimal. Reads nothing but the fields."""
        data = {"key_version": KEY_VERSION, **self.to_dict()}
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def differences(self, other: EngineSpec) -> list[tuple[str, Any, Any]]:
        """(field, value here, value in `other`) for every field that differs; options one by one."""
        mine, others = self.to_dict(), other.to_dict()
        found = [(n, mine[n], others[n]) for n in mine if n != "options" and mine[n] != others[n]]
        a, b = mine["options"], others["options"]
        return found + [(f"options.{n}", a.get(n), b.get(n)) for n in sorted({*a, *b}) if a.get(n) != b.get(n)]
