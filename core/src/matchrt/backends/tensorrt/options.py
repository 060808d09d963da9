"""Builder options by name: their kinds, defaults and ranges, and how each reaches the builder's configuration."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from matchrt.backends.tensorrt._api import TrtApi
from matchrt.errors import UsageError

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _boolean(raw: object) -> bool:
    text = str(raw).lower()
    if text not in (*_TRUE, *_FALSE):
        raise ValueError
    return text in _TRUE


def _number(low: int, high: int) -> Callable[[object], int]:
    def convert(raw: object) -> int:
        value = int(str(raw))
        if not low <= value <= high:
            raise ValueError
        return value

    return convert


def _name(raw: object) -> str:
    return str(raw).upper()


def _names(raw: object) -> list[str]:
    parts = raw.split(",") if isinstance(raw, str) else [str(p) for p in raw]  # type: ignore[attr-defined]
    return sorted({p.strip().upper() for p in parts if p.strip() and p.strip().lower() != "none"})


@dataclass(frozen=True)
class Option:
    """One option. A default of None leaves TensorRT's own."""

    default: Any
    convert: Callable[[object], Any]
    kind: str
    help: str


OPTIONS: Mapping[str, Option] = {
    "workspace": Option(
        None, _number(1, 1 << 20), "MiB", "memory that kernels may use; all of the device's by default"
    ),
    "level": Option(3, _number(0, 5), "0 to 5", "effort; above 3 bought no speed so far and costs 10 times the time"),
    "tf32": Option(False, _boolean, "true or false", "let float32 products lose 13 bits of their mantissa"),
    "tactic_sources": Option(None, _names, "names or none", "kernel libraries, such as CUBLAS,CUDNN"),
    "version_compatible": Option(False, _boolean, "true or false", "also run under later releases of the same major"),
    "hardware_compatibility": Option("NONE", _name, "a name", "NONE, AMPERE_PLUS or SAME_COMPUTE_CAPABILITY"),
    "verbosity": Option("LAYER_NAMES_ONLY", _name, "a name", "what the engine tells of its layers: NONE, DETAILED, …"),
    "aux_streams": Option(None, _number(0, 64), "0 to 64", "streams that one inference may use besides its own"),
    "max_tactics": Option(None, _number(1, 100000), "a number", "kernels to try for each layer"),
}


RUN_OPTIONS: Mapping[str, Option] = {
    "device": Option(0, _number(0, 1023), "a number", "index of the GPU"),
    "memory": Option(None, str, "a name", "provider of memory: torch, cuda-python, pycuda or driver"),
    "cuda_graphs": Option(True, _boolean, "true or false", "capture work that recurs, and replay it"),
    "shared_scratch": Option(
        True, _boolean, "true or false", "networks that run in turn share the memory they work in"
    ),
    "layer_times": Option(False, _boolean, "true or false", "time layers, which runs without CUDA graphs"),
}
"""Options of an engine that is run, where those of `OPTIONS` build it."""


def resolve_run_options(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """As `resolve_options`, for `RUN_OPTIONS`; what is not one of them, such as another backend's, is left out."""
    known = {n: v for n, v in chosen.items() if n in RUN_OPTIONS}
    return _converted(RUN_OPTIONS, known, "run option")


def resolve_options(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """`chosen` converted and completed by defaults. Raises `UsageError` naming the option, its range and the nearest name."""
    for name in chosen:
        if name not in OPTIONS:
            close = difflib.get_close_matches(name, OPTIONS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(OPTIONS)
            raise UsageError(f"TensorRT has no build option {name!r} here", hint=hint)
    return _converted(OPTIONS, chosen, "build option")


def _converted(options: Mapping[str, Option], chosen: Mapping[str, Any], kind: str) -> dict[str, Any]:
    resolved = {}
    for name, option in options.items():
        value = chosen.get(name, option.default)
        try:
            resolved[name] = None if value is None else option.convert(value)
        except (TypeError, ValueError):
            raise UsageError(f"{kind} {name}: {value!r} is not {option.kind}", hint=option.help) from None
    return resolved


def apply_options(api: TrtApi, config: Any, options: Mapping[str, Any]) -> None:
    """Set resolved options on a builder configuration. Raises `BackendError` for a name that this release lacks."""
    tf32 = api.enum("BuilderFlag", "TF32")
    if options["tf32"]:
        config.set_flag(tf32)
    else:
        config.clear_flag(tf32)  # TensorRT's default is on
    config.builder_optimization_level = options["level"]
    config.profiling_verbosity = api.enum("ProfilingVerbosity", options["verbosity"])
    if options["workspace"] is not None:
        config.set_memory_pool_limit(api.enum("MemoryPoolType", "WORKSPACE"), options["workspace"] << 20)
    if options["tactic_sources"] is not None:
        sources = 0
        for name in options["tactic_sources"]:
            sources |= 1 << int(api.enum("TacticSource", name))
        config.set_tactic_sources(sources)
    if options["version_compatible"]:
        config.set_flag(api.enum("BuilderFlag", "VERSION_COMPATIBLE"))
    if options["hardware_compatibility"] != "NONE":
        name = options["hardware_compatibility"]
        config.hardware_compatibility_level = api.enum("HardwareCompatibilityLevel", name)
    if options["aux_streams"] is not None:
        config.max_aux_streams = options["aux_streams"]
    if options["max_tactics"] is not None and api.has("max-num-tactics"):
        config.max_num_tactics = options["max_tactics"]
