"""Versions as tuples, so that 10.9 comes before 10.12; and what depends on them."""

from __future__ import annotations

import re
from collections.abc import Callable

from matchrt.model import Target


def version_tuple(text: str) -> tuple[int, ...]:
    """10.12.0.36 as (10, 12, 0, 36); what follows the numbers is ignored. An empty or foreign text gives ()."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(p) for p in found.group().split(".")) if found else ()


_COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a[: len(b)] <= b,
    ">": lambda a, b: a[: len(b)] > b,
    ">=": lambda a, b: a >= b,
}


def in_range(version: tuple[int, ...], text: str) -> bool:
    """Whether `version` meets every term of `text` (`>=8.6,<10`; empty: any). An empty version is the newest of all."""
    newest = version or (10**6,)
    for term in filter(None, text.split(",")):
        found = re.fullmatch(r"(<=|>=|<|>)([\d.]+)", term.strip())
        if not found:
            raise ValueError(f"{term!r} is no version condition")
        if not _COMPARE[found[1]](newest, version_tuple(found[2])):
            return False
    return True


def constrains_layers(target: Target) -> bool:
    """Whether the target types layers by constraints (TensorRT 8 and 9) rather than by what the graph says."""
    version = version_tuple(target.version)
    return target.backend == "tensorrt" and bool(version) and version[0] < 10
