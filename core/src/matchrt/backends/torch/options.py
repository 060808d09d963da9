"""Options of the `torch` backend, by name, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matchrt.errors import UsageError

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
COMPILE = ("none", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
HALF = ("autocast", "network")
DEVICES = ("auto", "cpu", "cuda")
_KNOWN = ("checkpoint", "device", "compile", "half", "benchmark", "threads", "foreign")
_BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)


@dataclass(frozen=True, kw_only=True)
class TorchOptions:
    """How the network runs.

    `precision`: fp32 (TF32 off, the same answer every time), tf32 (float32 products in TF32), fp16 or bf16. `half` says what the last
    two do: "autocast" (parameters stay in float32), or "network" (parameters and inputs are in that type too, under autocast, because
    networks make float32 tensors of their own). `compile` is a mode of `torch.compile`, "default" for
    its own, "none" for eager. `device`: cpu, cuda, cuda:N, or auto (cuda where there is one). `benchmark` lets cuDNN try its
    algorithms. `checkpoint` maps roles ("" is the main file) to the files of the bundle's weights. `threads`: of the CPU; 0 leaves
    torch's own choice. `foreign` takes a `checkpoint` whose sha256 is not the one that the bundle recorded.
    """

    precision: str = "fp32"
    checkpoint: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    device: str = "auto"
    compile: str = "none"
    half: str = "autocast"
    benchmark: bool = False
    threads: int = 0
    foreign: bool = False


def parse_options(precision: str, given: Mapping[str, Any]) -> TorchOptions:
    """Options as a program or a command line gives them. Raises `UsageError` that names what is known."""
    for name in given:
        if name not in _KNOWN:
            raise UsageError(f"backend 'torch' has no option {name!r}", hint=f"known: {', '.join(_KNOWN)}")
    device = str(given.get("device", "auto"))
    _require("precision", precision, PRECISIONS)
    _require("device", device.partition(":")[0], DEVICES)
    options = TorchOptions(
        precision=precision,
        checkpoint=parse_checkpoints(given.get("checkpoint")),
        device=device,
        compile=str(given.get("compile", "none")),
        half=str(given.get("half", "autocast")),
        benchmark=_boolean("benchmark", given.get("benchmark", False)),
        threads=int(given.get("threads", 0)),
        foreign=_boolean("foreign", given.get("foreign", False)),
    )
    _require("compile", options.compile, COMPILE)
    _require("half", options.half, HALF)
    return options


def parse_checkpoints(given: Any) -> dict[str, Path]:
    """Role to path from a path, "ROLE=PATH", several of them, or a mapping."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {("" if role == "main" else str(role)): Path(path) for role, path in given.items()}
    found: dict[str, Path] = {}
    for one in [given] if isinstance(given, (str, os.PathLike)) else list(_sequence(given)):
        role, equals, path = os.fspath(one).partition("=")
        if not equals or Path(os.fspath(one)).exists():
            role, path = "", os.fspath(one)
        found["" if role == "main" else role] = Path(path)
    return found


def _sequence(given: Any) -> Sequence[Any]:
    if not isinstance(given, Sequence):
        raise UsageError(f"option 'checkpoint' takes FILE or ROLE=FILE, got {given!r}")
    return given


def _boolean(name: str, value: Any) -> bool:
    try:
        return _BOOLEANS[str(value).lower()]
    except KeyError:
        raise UsageError(f"option {name!r} of backend 'torch': {value!r} is not true or false") from None


def _require(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"backend 'torch', {name}: {value!r} is not one of {', '.join(known)}")
