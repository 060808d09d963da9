"""What runs in the process of a trial. It announces each step before it takes it, so that a crash has a name.

Lines of JSON go to what was stdout: {"try": step}, {"done": step}, {"failed": step, "error": text}, {"answer": {…}} (merged).
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

IDENTITY = bytes.fromhex(
    "08073a370a100a017812017922084964656e746974791201675a0f0a0178120a0a"
    "08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)
"""An ONNX model: y = Identity(x), both float32 of shape (1), opset 13, IR version 7."""

Say = Callable[[dict[str, Any]], None]


def main(arguments: list[str]) -> None:
    """Run the task that `arguments` name, then end without the libraries' own clean-up."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message, default=str) + "\n")
        out.flush()

    task, *rest = arguments
    TASKS[task](say, *rest)
    out.close()
    os._exit(0)


@contextmanager
def _step(say: Say, name: str) -> Iterator[None]:
    say({"try": name})
    try:
        yield
    except (Exception, SystemExit) as error:
        text = getattr(error, "message", None) or f"{type(error).__name__}: {error}".rstrip(": ")
        say({"failed": name, "error": " ".join(str(text).split())[:500]})
    else:
        say({"done": name})


def imports(say: Say, *modules: str) -> None:
    """Import each."""
    for module in modules:
        with _step(say, module):
            importlib.import_module(module)


def plugins(say: Say) -> None:
    """Load the plugins; what `matchrt plugins --json` prints, and the backends by name."""
    with _step(say, "plugins"):
        from matchrt.cli.plugins import describe
        from matchrt.plugins import get_plugins

        found = get_plugins()
        say({"answer": {**describe(found), "backends": {n: b.description for n, b in found.backends.items()}}})


def cuda(say: Say) -> None:
    """The GPUs by the driver, and the driver's own version."""
    with _step(say, "libcuda"):
        from matchrt.backends.cuda_probe import probe

        say({"answer": asdict(probe())})
    with _step(say, "nvml"):
        say({"answer": {"driver_version": _driver_version()}})


def _driver_version() -> str:
    name = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
    try:
        nvml = ctypes.CDLL(name)
        text = ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, len(text)):
            return ""
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return ""
    return text.value.decode("ascii", "replace")


def backend(say: Say, name: str) -> None:
    """What a backend says of itself (it makes no TensorRT `Runtime`), and for onnxruntime which providers really start."""
    with _step(say, name):
        made = _spec(name).create()
        info = made.info()
        fields = {n: getattr(info, n) for n in ("version", "can_build", "can_run", "reason")}
        as_is = bool(getattr(made, "runs_as_is", True))
        say({"answer": {**fields, "details": dict(info.details), "as_is": as_is}})
        if name == "tensorrt_rtx":
            _targets(say)
        if name == "onnxruntime":
            _providers(say, made)


def _spec(name: str) -> Any:
    from matchrt.builtin import register_backends

    own = {b.name: b for b in register_backends()}
    if name in own:
        return own[name]  # a plugin that crashes must not hide core's backends
    from matchrt.plugins import get_plugins

    return get_plugins().backends[name]


def _targets(say: Say) -> None:
    from matchrt.backends.tensorrt._api import load_api

    kinds = getattr(load_api("tensorrt_rtx").module, "ComputeCapability", None)
    say({"answer": {"targets": [n for n in getattr(kinds, "__members__", {}) if n.startswith("SM")]}})


def _providers(say: Say, made: Any) -> None:
    """Start a session under each provider that this build carries; those of a GPU only where the CUDA probe found one."""
    import numpy as np

    from matchrt.backends.cuda_probe import probe

    carried = [p.strip() for p in made.info().details["providers"].split(",")]
    say({"answer": {"carried": carried}})
    started = []
    for provider in carried:
        if provider != "cpu" and not probe().usable:
            continue
        with _step(say, f"provider {provider}"):
            session = made.open("identity", IDENTITY, {"provider": provider, "threads": 1}).session()
            one = np.ones(1, np.float32)
            assert session.run({"x": one})["y"] == one, "Identity is not the identity"
            started.append(provider)
            say({"answer": {"started": started}})


def torch(say: Say) -> None:
    """torch with the CUDA that it was built for, and whether that can be used."""
    with _step(say, "torch"):
        library = importlib.import_module("torch")
        cuda_version = getattr(library.version, "cuda", None) or ""
        say({"answer": {"version": str(library.__version__), "cuda": cuda_version}})
        say({"answer": {"cuda_usable": bool(library.cuda.is_available())}})


TASKS: dict[str, Callable[..., None]] = {
    "imports": imports,
    "plugins": plugins,
    "cuda": cuda,
    "backend": backend,
    "torch": torch,
}
