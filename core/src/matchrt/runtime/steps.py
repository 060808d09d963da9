"""Run a matcher's steps over a namespace of tensors, and batch pairs whose tensors have equal shapes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeGuard

import numpy as np

from matchrt.backends import DeviceArray, Session
from matchrt.bundle import BundleManifest
from matchrt.bundle.manifest import NetworkContract, TensorContract
from matchrt.errors import BackendError

Tensors = dict[str, np.ndarray]
Array = np.ndarray | DeviceArray


def run_steps(
    manifest: BundleManifest, sessions: Mapping[str, Session], tensors: Tensors, wanted: Collection[str] = ()
) -> Tensors:
    """`tensors` with the outputs of every step added. Raises `BackendError` where the contract is not met.

    Sessions that can leave their outputs on the device do: such a tensor is copied to the host only if it is named in `wanted`
    (empty: all of them), or if a later step's session takes numpy arrays only. The others are left out of the answer.
    """
    return fetch(manifest, run_chain(manifest, sessions, tensors, wanted), wanted)


def run_chain(
    manifest: BundleManifest,
    sessions: Mapping[str, Session],
    tensors: Mapping[str, Array],
    wanted: Collection[str] = (),
    after: Callable[[str], None] | None = None,
) -> dict[str, Array]:
    """As `run_steps`, but what is on the device stays there, and its work may not be done yet.

    A tensor on the device that is neither in `wanted` nor read by a later step is let go at once. `after` is called with the
    network's name when a step's work has been given to the device.
    """
    space: dict[str, Array] = dict(tensors)
    for position, step in enumerate(manifest.steps):
        contract = manifest.network(step.network)
        inputs = {name: _take(space, source, step.network) for name, source in step.inputs.items()}
        check_inputs(contract, manifest, inputs)
        outputs = _run(sessions[step.network], inputs)
        space.update({target: outputs[name] for name, target in step.outputs.items()})
        if after is not None:
            after(step.network)
        if wanted:
            needed = {
                *wanted,
                *(source for later in manifest.steps[position + 1 :] for source in later.inputs.values()),
            }
            del inputs, outputs
            space = {n: v for n, v in space.items() if _is_host(v) or n in needed}
    return space


def fetch(manifest: BundleManifest, space: Mapping[str, Array], wanted: Collection[str] = ()) -> Tensors:
    """Host arrays of `space`: those on the host already, and of those on the device the ones in `wanted` (empty: all)."""
    contracts = {
        target: spec
        for step in manifest.steps
        for spec in manifest.network(step.network).outputs
        if (target := step.outputs.get(spec.name)) is not None
    }
    chosen = {n: v for n, v in space.items() if _is_host(v) or not wanted or n in wanted}
    return {n: _as_contract(v, contracts.get(n)) for n, v in _hosts(chosen).items()}


def run_network(
    manifest: BundleManifest, sessions: Mapping[str, Session], network: str, inputs: Mapping[str, np.ndarray]
) -> Tensors:
    """Outputs of one network on the host, in arrays of their own and in the contract's types. Raises `BackendError`."""
    contract = manifest.network(network)
    check_inputs(contract, manifest, inputs)
    outputs = sessions[network].run(dict(inputs))
    return {t.name: np.array(_as_contract(outputs[t.name], t)) for t in contract.outputs}


def _run(session: Session, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    on_device = getattr(session, "run_on_device", None)
    if on_device is not None:
        outputs: Mapping[str, Array] = on_device(inputs)
        return outputs
    return session.run({n: _host(v) for n, v in inputs.items()})


def _is_host(value: Array) -> TypeGuard[np.ndarray]:
    return isinstance(value, np.ndarray)


def _host(value: Array) -> np.ndarray:
    return value if _is_host(value) else value.numpy()  # type: ignore[union-attr]


def _hosts(values: Mapping[str, Array]) -> Tensors:
    """All on the host. Arrays of a kind that can be copied together (`numpy_of`) are, so that they wait for the device once."""
    together: dict[type, list[str]] = {}
    for name, value in values.items():
        if not _is_host(value) and hasattr(value, "numpy_of"):
            together.setdefault(type(value), []).append(name)
    copied: Tensors = {}
    for kind, names in together.items():
        copied.update(zip(names, kind.numpy_of([values[n] for n in names]), strict=True))  # type: ignore[attr-defined]
    return {n: copied[n] if n in copied else _host(v) for n, v in values.items()}


def _as_contract(array: np.ndarray, spec: TensorContract | None) -> np.ndarray:
    """`array`; integers in the contract's width, which TensorRT may have narrowed."""
    if spec is None or array.dtype == np.dtype(spec.dtype) or array.dtype.kind not in "iu":
        return array
    return array.astype(spec.dtype)


def _take(space: Mapping[str, Array], name: str, network: str) -> Array:
    try:
        return space[name]
    except KeyError:
        raise BackendError(f"network {network!r} needs tensor {name!r}, which nothing made") from None


def check_inputs(contract: NetworkContract, manifest: BundleManifest, inputs: Mapping[str, Array]) -> None:
    """Raise `BackendError` unless dtypes, ranks, fixed sizes and the bounds of named axes hold."""
    axes = {a.name: a for a in manifest.axes}
    for spec in contract.inputs:
        array = inputs[spec.name]
        if not _has_type(array, spec) or array.ndim != len(spec.shape):
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


def _has_type(array: Array, spec: TensorContract) -> bool:
    """Whether the element type is the contract's; integers that stay on the device may be narrower (TensorRT 8 has no int64)."""
    wanted = np.dtype(spec.dtype)
    return array.dtype == wanted or (not _is_host(array) and array.dtype.kind in "iu" and wanted.kind in "iu")


def _describe(spec: TensorContract) -> str:
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"


def split_batch(tensors: Tensors, count: int) -> list[Tensors]:
    """One namespace for each pair of a batch of `count`."""
    return [{name: array[i : i + 1] for name, array in tensors.items()} for i in range(count)]
