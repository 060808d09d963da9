"""Which Python runs the worker of which backend."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from matchrt.errors import EnvironmentLackError, UsageError


@dataclass(frozen=True)
class Interpreters:
    """Executables, or launcher scripts that stand for `python`, by backend; the rest run under this one."""

    by_backend: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Interpreters:
        """From BACKEND=PATH texts. Raises `UsageError` for another form, `EnvironmentLackError` where nothing can be run."""
        found: dict[str, str] = {}
        for text in texts:
            backend, equals, path = text.partition("=")
            if not equals or not backend or not path:
                raise UsageError(f"--interpreter takes BACKEND=PATH, got {text!r}")
            found[backend] = executable(path)
        return cls(found)

    def of(self, backend: str) -> str:
        """The interpreter of `backend`'s worker."""
        return self.by_backend.get(backend, sys.executable)


def executable(path: str) -> str:
    """The program at `path` or of that name on PATH. Raises `EnvironmentLackError`."""
    found = shutil.which(path)
    if found is None:
        raise EnvironmentLackError(
            f"no interpreter at {path}: it does not exist or is not executable",
            hint='name a Python executable, or a script that ends in `exec python3 "$@"`',
        )
    return found
