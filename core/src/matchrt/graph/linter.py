"""Say before a long build what a target will refuse: node, operator, limit and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx

from matchrt.model import Target


@dataclass(frozen=True)
class Finding:
    """One thing that a target refuses (`error`), changes silently (`warning`) or that costs speed (`note`)."""

    node: str
    operator: str
    limit: str
    remedy: str
    severity: Literal["error", "warning", "note"]


def lint(model: onnx.ModelProto, target: Target) -> list[Finding]:
    """Findings for `model` on `target` (its backend and version; an empty version means the newest known), in graph order."""
    raise NotImplementedError


def require_buildable(model: onnx.ModelProto, target: Target) -> list[Finding]:
    """`lint`; raises `BackendError` that lists every finding of severity `error`, returns the others."""
    raise NotImplementedError
