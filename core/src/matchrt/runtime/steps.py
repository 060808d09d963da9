"""Run a matcher's steps over a namespace of tensors, and batch pairs whose tensors have equal shapes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from matchrt.backends import Session
from matchrt.bundle import BundleManifest
from matchrt.bundle.manifest import NetworkContract, TensorContract
from matchrt.errors import BackendError

Tensors = dict[str, np.ndarray]


def run_steps(manifest: BundleManifest, sessions: Mapping[str, Session], tensors: Tensors) -> Tensors:
    """`tensors` with the outputs of every step added. Raises `BackendError` where the contract is not met."""
    space = dict(tensors)
    for step in manifest.steps:
        contract = manifest.network(step.network)
        inputs = {name: _take(space, source, step.network) for name, source in step.inputs.items()}
        check_inputs(contract, manifest, inputs)
        outputs = sessions[step.network].run(inputs)
        space.update({target: outputs[name] for name, target in step.outputs.items()})
    return space


def _take(space: Tensors, name: str, network: str) -> np.ndarray:
    try:
        return space[name]
    except KeyError:
        raise BackendError(f"network {network!r} needs tensor {name!r}, which nothing made") from None


def check_inputs(contract: NetworkContract, manifest: BundleManifest, inputs: Mapping[str, np.ndarray]) -> None:
    """Raise `BackendError` unless dtypes, ranks, fixed sizes and the bounds of named axes hold."""
    axes = {a.name: a for a in manifest.axes}
    for spec in contract.inputs:
        array = inputs[spec.name]
        if array.dtype != np.dtype(spec.dtype) or array.ndim != len(spec.shape):
            raise BackendError(
                f"network {contract.name!r}: input {spec.name!r} must be {_describe(spec)}, got {array.dtype}{list(array.shape)}"
            )
        for size, wanted in zip(array.shape, spec.shape, strict=True):
            axis = axes.get(wanted) if isinstance(wanted, str) else None
            fits = size == wanted if axis is None else axis.min <= size <= axis.max and size % axis.divisor == 0
            if not fits and (axis or isinstance(wanted, int)):
                bounds = f" with {axis.name} in {axis.min}..{axis.max} by {axis.divisor}" if axis else ""
                raise BackendError(
                    f"network {contract.name!r}: input {spec.name!r} must be {_describe(spec)}{bounds}, got {list(array.shape)}"
                )


def _describe(spec: TensorContract) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"


def stack_batch(pairs: list[Tensors], manifest: BundleManifest) -> Tensors | None:
    """The pairs joined along their leading axis; None where shapes differ or a graph has a fixed batch."""
    first = pairs[0]
    for pair in pairs[1:]:
        if {n: v.shape for n, v in pair.items()} != {n: v.shape for n, v in first.items()}:
            return None
    if any(isinstance(t.shape[0], int) for n in manifest.networks for t in n.inputs if t.shape):
        return None
    return {name: np.concatenate([p[name] for p in pairs]) for name in first}


def split_batch(tensors: Tensors, count: int) -> list[Tensors]:
    """One namespace for each pair of a batch of `count`."""
    return [{name: array[i : i + 1] for name, array in tensors.items()} for i in range(count)]
