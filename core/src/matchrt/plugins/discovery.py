"""Find entry points of group `matchrt` and decide, without importing any, which ones load."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions

ALLOW = "MATCHRT_PLUGINS"
BLOCK = "MATCHRT_DISABLE_PLUGINS"
GROUP = "matchrt"


@dataclass(frozen=True)
class Found:
    """An entry point and the distribution that declares it."""

    name: str
    value: str
    distribution: str
    version: str

    @property
    def aliases(self) -> frozenset[str]:
        """What the allow and block lists may call it: entry-point name, distribution, or `distribution:name`."""
        dist = _normal(self.distribution)
        return frozenset({_normal(self.name), dist, f"{dist}:{_normal(self.name)}"})

    def load(self) -> object:
        """Import the module that the entry point names."""
        return EntryPoint(self.name, self.value, GROUP).load()


def find_entry_points() -> list[Found]:
    """All entry points of the group, each distribution once, sorted by distribution and name.

    A distribution whose metadata is damaged takes nothing else down: `matchrt doctor` names it.
    """
    found: dict[tuple[str, str, str], Found] = {}
    for distribution in distributions():
        try:
            points = [p for p in distribution.entry_points if p.group == GROUP]
        except Exception:
            continue
        for point in points:
            name, version = _identity(distribution)
            key = (_normal(name), point.name, point.value)
            found.setdefault(key, Found(point.name, point.value, name, version))
    return [found[key] for key in sorted(found)]


def _identity(distribution: Distribution) -> tuple[str, str]:
    try:
        return distribution.metadata["Name"] or "unknown", distribution.version or ""
    except Exception:
        return "unknown", ""


def listed(environment: Mapping[str, str], variable: str) -> frozenset[str] | None:
    """The names in a comma-separated environment variable; None if it is not set."""
    if variable not in environment:
        return None
    return frozenset(_normal(part) for part in environment[variable].split(",") if part.strip())


def reason_to_skip(found: Found, environment: Mapping[str, str]) -> str | None:
    """Why the lists keep `found` from loading; None if it may load."""
    allowed, blocked = listed(environment, ALLOW), listed(environment, BLOCK)
    if blocked is not None and found.aliases & blocked:
        return f"named in {BLOCK}"
    if allowed is not None and not found.aliases & allowed:
        return f"not named in {ALLOW}"
    return None


def clashes(points: Iterable[Found]) -> dict[Found, str]:
    """Entry points whose name two distributions claim, each with the reason for refusing it."""
    by_name: dict[str, list[Found]] = {}
    for point in points:
        by_name.setdefault(_normal(point.name), []).append(point)
    return {
        point: f"the name {point.name!r} is claimed by several distributions: "
        + ", ".join(f"{p.distribution} {p.version}" for p in same)
        + f"; uninstall one, or name it in {BLOCK} as DISTRIBUTION:{point.name}"
        for same in by_name.values()
        if len(same) > 1
        for point in same
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
