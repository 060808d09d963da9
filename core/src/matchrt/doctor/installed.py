"""Distributions and requirements as metadata tells them. Nothing is imported, and broken metadata is an answer."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata

MODULES: Mapping[str, str] = {
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "cuda-python": "cuda.bindings.runtime",
    "pycuda": "pycuda.driver",
}
"""The module to import for a distribution, where it is not called like it."""

ALTERNATIVES: Mapping[str, tuple[str, ...]] = {
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
    "cuda-python": ("cuda-bindings",),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
"""Distributions that bring the same module. `rivals` are those that do not depend on each other."""


@dataclass(frozen=True)
class Distribution:
    """An installed distribution. `fault` says what is wrong with its metadata; then `version` may be empty."""

    name: str
    version: str
    fault: str = ""


@dataclass(frozen=True)
class Requirement:
    """A line of `Requires-Dist`: `bounds` are pairs such as (">=", "1.24"); `extra` is empty for what core needs."""

    name: str
    bounds: tuple[tuple[str, str], ...]
    extra: str

    @property
    def module(self) -> str:
        """What to import."""
        return MODULES.get(self.name, self.name.replace("-", "_"))

    @property
    def shown(self) -> str:
        """As pip takes it."""
        return self.name + ",".join(f"{op}{v}" for op, v in self.bounds)

    def admits(self, version: str) -> bool:
        """Whether `version` is within the bounds that are plain comparisons."""
        have = _numbers(version)
        tests = {">=": have.__ge__, ">": have.__gt__, "<": have.__lt__, "<=": have.__le__}
        return all(tests[op](_numbers(bound)) for op, bound in self.bounds if op in tests)


def normal(name: str) -> str:
    """The name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, Distribution]:
    """Every distribution on the path by normalised name, the first one wins as it does for an import. Never raises."""
    found: dict[str, Distribution] = {}
    for distribution in _distributions():
        one = _read(distribution)
        found.setdefault(normal(one.name), one)
    return found


def _distributions() -> Iterable[metadata.Distribution]:
    try:
        return list(metadata.distributions())
    except Exception:  # a finder of another package may be broken
        return []


def _read(distribution: metadata.Distribution) -> Distribution:
    folder = str(getattr(getattr(distribution, "_path", None), "name", "")) or "unknown"
    guess, _, version = folder.rpartition(".")[0].partition("-")
    try:
        name, told = distribution.metadata["Name"], distribution.metadata["Version"]
    except Exception as error:
        return Distribution(guess or folder, version, f"its metadata cannot be read ({type(error).__name__})")
    if not name or not told:
        return Distribution(name or guess or folder, told or version, "its metadata lacks name or version")
    try:
        _ = distribution.entry_points
    except Exception as error:
        return Distribution(name, told, f"its entry points cannot be read ({type(error).__name__})")
    return Distribution(name, told)


def requirements(distribution: str = "matchrt") -> tuple[list[Requirement], str]:
    """What `distribution` needs on this Python, core's needs first, and why that is not known ("" if it is)."""
    try:
        lines = metadata.requires(distribution) or []
    except Exception as error:
        return [], f"the metadata of {distribution} cannot be read: {type(error).__name__}"
    parsed = [r for r in map(parse, lines) if r is not None]
    return sorted(parsed, key=lambda r: (r.extra, r.name)), ""


def parse(line: str) -> Requirement | None:
    """One line of `Requires-Dist`; None where it is for another Python."""
    head, _, marker = line.partition(";")
    match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*\(?([^)]*)\)?", head)
    assert match is not None, line
    for operator, bound in re.findall(r"python_version\s*(<=|>=|<|>)\s*['\"]([\d.]+)['\"]", marker):
        if not Requirement("python", ((operator, bound),), "").admits(f"{sys.version_info[0]}.{sys.version_info[1]}"):
            return None
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
    bounds = re.findall(r"(~=|==|!=|<=|>=|<|>)\s*([^\s,]+)", match.group(2))
    return Requirement(normal(match.group(1)), tuple(bounds), extra.group(1) if extra else "")


def provider_of(requirement: str, found: Mapping[str, Distribution]) -> Distribution | None:
    """The installed distribution that brings what `requirement` names, an alternative one too."""
    for name in (requirement, *ALTERNATIVES.get(requirement, ())):
        if name in found:
            return found[name]
    return None


def rivals(found: Mapping[str, Distribution]) -> list[tuple[str, ...]]:
    """Groups of installed distributions that overwrite each other's files."""
    groups = [
        (name, *others) for name, others in ALTERNATIVES.items() if name in ("opencv-python-headless", "onnxruntime")
    ]
    there = [tuple(n for n in group if n in found) for group in groups]
    return [group for group in there if len(group) > 1]


def importable(module: str) -> bool:
    """Whether the top of `module` is on the path: a real package, not a folder of that name. It is not imported."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError, AttributeError):
        return False
    return spec is not None and (spec.origin is not None or "." in module)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"v?(\d+(?:\.\d+)*)", version.strip())
    numbers = [int(n) for n in match.group(1).split(".")] if match else []
    while numbers and numbers[-1] == 0:  # 1.0 is 1
        numbers.pop()
    return tuple(numbers)
