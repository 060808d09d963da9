"""The check that ends every conversion: ONNX in onnxruntime against the PyTorch network, on photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from matchrt.backends import Session
from matchrt.backends.onnxruntime import OnnxRuntimeBackend
from matchrt.errors import VerificationError
from matchrt.export.compare import MatchDifference, TensorDifference, compare_matches, compare_tensors
from matchrt.export.onnx_export import named_outputs
from matchrt.images.image import Image
from matchrt.images.read import read_image
from matchrt.matches import Matches
from matchrt.model import MatcherSpec, NetworkSpec, Parity, Settings, Step, Variant
from matchrt.plugins.dispatch import MatcherHooks
from matchrt.progress import Progress, stage

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class CheckResult:
    """What the check found."""

    tensors: tuple[TensorDifference, ...]
    matches: tuple[MatchDifference, ...]
    parity: Parity

    @property
    def failures(self) -> list[str]:
        """One line for each figure beyond the tolerance; empty if all hold."""
        lines = [
            f"{d.network}.{d.tensor}: {d.outliers:.2%} of {d.elements} elements beyond the tolerance "
            f"(largest difference {d.max_abs:.3g}, allowed share {d.allowed_outliers:.2%})"
            for d in self.tensors
            if not d.passed
        ]
        lines += [
            f"pair {m.pair}: {m.shared:.2%} of the matches shared ({m.reference} against {m.other}), "
            f"need {self.parity.shared_matches:.2%}"
            for m in self.matches
            if m.shared < self.parity.shared_matches and m.unshared > self.parity.spare_matches
        ]
        return lines

    def require(self) -> None:
        """Raise `VerificationError` listing every failure, if there is one."""
        if self.failures:
            raise VerificationError(
                "the ONNX differs from the PyTorch network:\n  " + "\n  ".join(self.failures),
                hint="no bundle was written; --opset 18 is the best tested, and --debug keeps the traceback",
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        worst: dict[str, TensorDifference] = {}
        for d in self.tensors:
            key = f"{d.network}.{d.tensor}"
            if key not in worst or d.max_abs > worst[key].max_abs:
                worst[key] = d
        return {
            "passed": not self.failures,
            "backend": "onnxruntime",
            "tensors": {k: d.to_dict() for k, d in worst.items()},
            "matches": [m.to_dict() for m in self.matches],
        }


def run_check(
    hooks: MatcherHooks,
    variant: Variant,
    settings: Settings,
    network: torch.nn.Module,
    graphs: Mapping[str, Path],
    pairs: Sequence[tuple[str, Any, Any]],
    progress: Progress,
) -> CheckResult:
    """Compare every network on equal inputs, and the matches of the two whole ways, for each (name, image0, image1) of `pairs`."""
    spec = hooks.matcher
    steps = spec.steps_of(variant)
    parity = hooks.parity(variant)
    backend = OnnxRuntimeBackend()
    with stage(progress, "check against PyTorch", len(pairs) * len(steps) + len(graphs)):
        sessions: dict[str, Session] = {}
        for name, path in graphs.items():
            sessions[name] = backend.open(name, path, {}).session()
            progress.advance()
        tensors: list[TensorDifference] = []
        matches: list[MatchDifference] = []
        for name, image0, image1 in pairs:
            found = _check_pair(
                _Way(hooks, spec, steps, settings, parity), network, sessions, name, (image0, image1), progress
            )
            tensors += found[0]
            matches.append(found[1])
    return CheckResult(tuple(tensors), tuple(matches), parity)


@dataclass(frozen=True)
class _Way:
    hooks: MatcherHooks
    spec: MatcherSpec
    steps: tuple[Step, ...]
    settings: Settings
    parity: Parity

    def prepare(self, images: tuple[Image, Image]) -> tuple[Tensors, Any]:
        tensors, geometry = self.hooks.preprocess(images, self.settings)
        return dict(tensors), geometry

    def finish(self, tensors: Tensors, geometry: Any) -> Matches:
        return self.hooks.postprocess(tensors, geometry, self.settings)


def _check_pair(
    way: _Way,
    network: torch.nn.Module,
    sessions: Mapping[str, Session],
    name: str,
    images: tuple[Any, Any],
    progress: Progress,
) -> tuple[list[TensorDifference], MatchDifference]:
    prepared, geometry = way.prepare((read_image(images[0]), read_image(images[1])))
    reference, converted = dict(prepared), dict(prepared)
    differences = []
    for step in way.steps:
        spec = way.spec.network(step.network)
        inputs = {n: reference[s] for n, s in step.inputs.items()}
        expected = run_network(network, spec, inputs)
        differences += compare_tensors(spec, expected, sessions[step.network].run(inputs), way.parity)
        own = sessions[step.network].run({n: converted[s] for n, s in step.inputs.items()})
        reference.update({t: expected[n] for n, t in step.outputs.items()})
        converted.update({t: own[n] for n, t in step.outputs.items()})
        progress.advance()
    match_difference = compare_matches(
        name, way.finish(reference, geometry), way.finish(converted, geometry), way.parity.coordinate_px
    )
    return differences, match_difference


def run_network(network: torch.nn.Module, spec: NetworkSpec, inputs: Mapping[str, np.ndarray]) -> Tensors:
    """Outputs of one network in PyTorch, by name."""
    module = network.get_submodule(spec.module_path)
    with torch.inference_mode():
        answer = module(*(torch.from_numpy(np.ascontiguousarray(inputs[t.name])) for t in spec.inputs))
    return {n: v.numpy() for n, v in named_outputs(answer, [t.name for t in spec.outputs]).items()}
