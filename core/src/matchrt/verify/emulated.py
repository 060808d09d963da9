"""What a backend would compute in float16, emulated on this CPU: the graph prepared for it, each half tensor rounded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from matchrt.bundle import Bundle
from matchrt.engines.prepared import prepare_network
from matchrt.errors import UsageError
from matchrt.graph.emulate import emulate_half, emulate_tf32
from matchrt.model import Target
from matchrt.plugins import MatcherHooks
from matchrt.progress import Progress, stage
from matchrt.verify.derive import derive_bundle
from matchrt.verify.subjects import How, Subject, opened


@contextmanager
def opened_emulated(bundle: Bundle, hooks: MatcherHooks, how: How, progress: Progress) -> Iterator[Subject]:
    """The bundle in float16 as `how.backend` would be given it, run by onnxruntime in float32 with every half tensor rounded."""
    with tempfile.TemporaryDirectory(prefix="matchrt-emulated-") as folder:
        derived = emulated_bundle(bundle, hooks, how, Path(folder), progress)
        with opened(derived, How(threads=how.threads), hooks.plugins, progress) as subject:
            yield subject


def emulated_bundle(bundle: Bundle, hooks: MatcherHooks, how: How, folder: Path, progress: Progress) -> Bundle:
    """The bundle with each graph prepared in float16 and emulated, products left in float32 with TF32's operands where the matcher
    allows it. Raises `UsageError` for another precision.
    """
    if how.precision != "fp16":
        raise UsageError(f"only fp16 can be emulated, not {how.precision}", hint="add --precision fp16")
    target = emulation_target(hooks, how.backend)
    models, rounded = {}, bool(hooks.engine_options(target).get("tf32"))
    with stage(progress, "emulate float16", len(bundle.manifest.networks)):
        for network in bundle.manifest.networks:
            prepared = prepare_network(bundle, hooks, network.name, target, {}, folder)
            model = emulate_half(onnx.load(str(prepared.graph)))
            models[network.name] = emulate_tf32(model) if rounded else model
            progress.advance(1, network.name)
    return derive_bundle(bundle, folder / "bundle", models)


def emulation_target(hooks: MatcherHooks, backend: str) -> Target:
    """What graphs are prepared for: the backend's own passes, precision typed in the graph. TensorRT itself need not be here."""
    if backend == "tensorrt":  # version 8 would take constraints on layers: the same meaning, but not in the graph
        return Target(backend=backend, version="10.0", precision="fp16")
    made: Any = hooks.plugins.backends[backend].create() if backend in hooks.plugins.backends else None
    if made is None or not hasattr(made, "target"):
        raise UsageError(f"backend {backend!r} prepares no graphs, so there is nothing to emulate")
    target: Target = made.target("fp16")
    return target
