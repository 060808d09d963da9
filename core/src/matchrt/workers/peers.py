"""Published implementations as functions, for `matchrt bench --against PATH.py:FUNCTION`.

The contract: `FUNCTION(bundle, tensors, device, **options)` returns a callable without arguments that runs one call (one batch of pairs)
with everything already on `device`, and leaves its answer there. `bundle` is the content of bundle.json, so that sizes and numbers of
keypoints can be made equal; `tensors` are the pair's tensors as the bundle's own preprocessing made them (numpy, by name), batched as
the contender is; `device` is "cpu" or "cuda"; `options` are texts, from `PATH.py:FUNCTION:NAME=VALUE:…`. What it cannot do it refuses
with a `MatchrtError`. On "cuda" it must have loaded torch, whose events time it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from matchrt.backends.clock import Clock, TorchClock, WallClock
from matchrt.errors import BackendError, UsageError


@dataclass(frozen=True)
class PeerName:
    """`PATH.py:FUNCTION[:NAME=VALUE]…`, taken apart."""

    path: Path
    function: str
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def parse(cls, text: str) -> PeerName:
        """Raises `UsageError` for another form, or where there is no such file."""
        head, found, tail = text.partition(".py:")
        function, *options = tail.split(":")
        pairs = [o.partition("=") for o in options]
        if not found or not function.isidentifier() or not all(equals for _, equals, _ in pairs):
            raise UsageError(f"a peer is PATH.py:FUNCTION[:NAME=VALUE]…, got {text!r}")
        path = Path(f"{head}.py")
        if not path.is_file():
            raise UsageError(f"no file {path} to take {function!r} from")
        return cls(path.resolve(), function, {name: value for name, _, value in pairs})

    @property
    def label(self) -> str:
        """For tables: no folders."""
        return ":".join([f"{self.path.stem}.{self.function}", *(f"{n}={v}" for n, v in self.options.items())])


def load_peer(
    source: str,
    options: Mapping[str, str],
    bundle: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    device: str,
    threads: int,
) -> tuple[Callable[[], Any], Clock]:
    """The callable of "PATH.py:FUNCTION" and the clock that times it. Raises `UsageError`, `BackendError`, and what the function raises."""
    path, _, function = source.rpartition(":")
    name = f"matchrt_peer_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(Path(path).parent))
    spec.loader.exec_module(module)
    make = getattr(module, function, None)
    if not callable(make):
        raise UsageError(f"{Path(path).name} has no function {function!r}")
    if threads and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    call = make(bundle, tensors, device, **options)
    if not callable(call):
        raise BackendError(f"{function} of {Path(path).name} must return a callable, got {type(call).__name__}")
    if not device.startswith("cuda"):
        return call, WallClock()
    if "torch" not in sys.modules:
        raise BackendError(f"{function} of {Path(path).name} did not load torch, whose events time work on {device}")
    return call, TorchClock(device)
