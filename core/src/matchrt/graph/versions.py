"""Versions as tuples, so that 10.9 comes before 10.12."""

from __future__ import annotations

import re


def version_tuple(text: str) -> tuple[int, ...]:
    """10.12.0.36 as (10, 12, 0, 36); what follows the numbers is ignored. An empty or foreign text gives ()."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(p) for p in found.group().split(".")) if found else ()
