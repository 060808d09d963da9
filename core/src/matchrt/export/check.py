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
from matchrt.images.read import read_image
from matchrt.model import NetworkSpec, Parity, Settings, Step, Variant
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

    @property
    def worst(self) -> dict[str, TensorDifference]:
        """The largest difference of each "network.tensor" over all pairs and steps."""
        worst: dict[str, TensorDifference] = {}
        for d in self.tensors:
            key = f"{d.network}.{d.tensor}"
            if key not in worst or d.max_abs > worst[key].max_abs:
                worst[key] = d
        return worst

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            "passed": not self.failures,
            "backend": "onnxruntime",
            "tensors": {k: d.to_dict() for k, d in self.worst.items()},
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
    """Compare every network on equal inputs, and the matches of the two whole ways, for each (name, image0, image1) of `pairs`.

    A graph is open only from its first step to its last, so that a large matcher's graphs are not all in memory at once.
    """
    spec = hooks.matcher
    steps = spec.steps_of(variant)
    parity = hooks.parity(variant)
    last = {step.network: number for number, step in enumerate(steps)}
    tensors: list[TensorDifference] = []
    with stage(progress, "check against PyTorch", len(pairs) * len(steps)):
        runs = [_Run(name, *_prepared(hooks, settings, image0, image1)) for name, image0, image1 in pairs]
        sessions: dict[str, Session] = {}
        for number, step in enumerate(steps):
            if step.network not in sessions:
                sessions[step.network] = OnnxRuntimeBackend().open(step.network, graphs[step.network], {}).session()
            for run in runs:
                progress.advance(0, step.network)
                tensors += run.check(step, spec.network(step.network), network, sessions[step.network], parity)
                progress.advance()
            if last[step.network] == number:
                del sessions[step.network]
        matches = tuple(run.compare(hooks, settings, parity) for run in runs)
    return CheckResult(tuple(tensors), matches, parity)


def _prepared(hooks: MatcherHooks, settings: Settings, image0: Any, image1: Any) -> tuple[Tensors, Tensors, Any]:
    tensors, geometry = hooks.preprocess((read_image(image0), read_image(image1)), settings)
    return dict(tensors), dict(tensors), geometry


@dataclass
class _Run:
    """One pair on its way through PyTorch (`reference`) and through the graphs (`converted`)."""

    name: str
    reference: Tensors
    converted: Tensors
    geometry: Any

    def check(
        self, step: Step, spec: NetworkSpec, network: torch.nn.Module, session: Session, parity: Parity
    ) -> list[TensorDifference]:
        """Both on the reference's tensors, compared; then the graph on its own."""
        inputs = {n: self.reference[s] for n, s in step.inputs.items()}
        expected = run_network(network, spec, inputs)
        differences = compare_tensors(spec, expected, session.run(inputs), parity)
        own = session.run({n: self.converted[s] for n, s in step.inputs.items()})
        self.reference.update({t: expected[n] for n, t in step.outputs.items()})
        self.converted.update({t: own[n] for n, t in step.outputs.items()})
        return differences

    def compare(self, hooks: MatcherHooks, settings: Settings, parity: Parity) -> MatchDifference:
        """The matches of both ways."""
        reference, converted = (
            hooks.postprocess(tensors, self.geometry, settings) for tensors in (self.reference, self.converted)
        )
        return compare_matches(self.name, reference, converted, parity.coordinate_px)


def run_network(network: torch.nn.Module, spec: NetworkSpec, inputs: Mapping[str, np.ndarray]) -> Tensors:
    """Outputs of one network in PyTorch, by name."""
    module = network.get_submodule(spec.module_path)
    with torch.inference_mode():
        answer = module(*(torch.from_numpy(np.ascontiguousarray(inputs[t.name])) for t in spec.inputs))
    return {n: v.numpy() for n, v in named_outputs(answer, [t.name for t in spec.outputs]).items()}
