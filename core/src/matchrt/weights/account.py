"""Put every checkpoint key and every network parameter in exactly one class; load only when all is accounted for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch

from matchrt.errors import WeightsError
from matchrt.weights.actions import equal_bits
from matchrt.weights.apply import Remapped
from matchrt.weights.report import (
    KeyClass,
    KeyEntry,
    Origin,
    ParameterClass,
    ParameterEntry,
    WeightReport,
)

SHOWN_NAMES = 12
"""How many names of one class an error lists before it counts the rest."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_INTEGERS = ("int8", "int16", "int32", "int64")
_WORST_FIRST: tuple[KeyClass, ...] = ("misshapen", "unexpected", "dropped", "backfilled", "loaded")


class TensorLike(Protocol):
    """What the account needs of a network's tensor: a shape and a dtype (torch's, or its name as text)."""

    @property
    def shape(self) -> Sequence[int]:
        """Size of every axis."""
        ...

    @property
    def dtype(self) -> Any:
        """A `torch.dtype`, or its name."""
        ...


@dataclass(frozen=True)
class _Fate:
    kind: KeyClass
    target: str = ""
    reason: str = ""


def network_state(network: torch.nn.Module | Mapping[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name, as the network holds them, so that aliases can be seen.

    Several networks are given by name, and their keys get that name as prefix: `{"extractor": …}` → `extractor.…`.
    """
    parts = (
        {"": network} if isinstance(network, torch.nn.Module) else {f"{name}.": net for name, net in network.items()}
    )
    state = {
        f"{prefix}{key}": value
        for prefix, net in parts.items()
        for key, value in net.state_dict(keep_vars=True).items()
    }
    strange = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise WeightsError(f"the network keeps something that is not a tensor in its state: {strange[0]!r}")
    return state


def account(
    remapped: Remapped, network_state: Mapping[str, TensorLike], allow_missing: Iterable[str] = ()
) -> WeightReport:
    """Compare what the rules produced with what the network has; every key and parameter gets exactly one class.

    `network_state` maps names to anything with a shape and a dtype (see `network_state()`; meta tensors will do).
    `allow_missing` are shell patterns over network names. A key that was cut up takes the worst class of its pieces
    (misshapen, unexpected, dropped, then loaded). Half, double and single precision convert into each other, and
    integers into wider ones; the report shows it. Any other difference in dtype counts as misshapen.
    """
    patterns = tuple(allow_missing)
    fates: dict[Origin, list[_Fate]] = {origin: [] for origin in remapped.inputs}
    parameters = tuple(
        _parameter(names, network_state[names[0]], remapped, patterns, fates) for names in _alias_groups(network_state)
    )
    for name, origins in remapped.origins.items():
        if name not in network_state:
            _record(fates, origins, _Fate("unexpected", reason=_named(name, origins)))
    for name, origins in remapped.outside.items():
        source, _, key = name.partition(":")
        _record(fates, origins, _Fate("unexpected", reason=f"{key!r} is not wanted from {source!r}"))
    for entry in remapped.dropped:
        _record(fates, entry.origins, _Fate("dropped", reason=entry.reason))
    lost = [str(origin) for origin, found in fates.items() if not found]
    if lost:
        raise WeightsError(f"the rules lost {len(lost)} keys without a class, for example {lost[0]!r}")
    keys = tuple(_key(origin, found, remapped.inputs[origin]) for origin, found in fates.items())
    return WeightReport(keys, parameters, patterns, remapped.absent)


def _alias_groups(state: Mapping[str, TensorLike]) -> list[tuple[str, ...]]:
    groups: dict[object, list[str]] = {}
    for name, value in state.items():
        groups.setdefault(_storage_key(name, value), []).append(name)
    return [tuple(names) for names in groups.values()]


def _storage_key(name: str, value: TensorLike) -> object:
    if not isinstance(value, torch.Tensor):
        return name
    if value.device.type == "meta" or value.numel() == 0:
        return id(value)
    return value.device, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype


def _record(fates: dict[Origin, list[_Fate]], origins: Iterable[Origin], fate: _Fate) -> None:
    for origin in origins:
        fates[origin].append(fate)


def _named(name: str, origins: Sequence[Origin]) -> str:
    return "" if len(origins) == 1 and origins[0].key == name else f"as {name!r}"


def _parameter(
    names: tuple[str, ...],
    value: TensorLike,
    remapped: Remapped,
    patterns: Sequence[str],
    fates: dict[Origin, list[_Fate]],
) -> ParameterEntry:
    shape, dtype = tuple(value.shape), _dtype_name(value.dtype)
    nbytes = math.prod(shape) * _item_size(dtype)
    found = [name for name in names if name in remapped.tensors]

    def entry(kind: ParameterClass, **more: Any) -> ParameterEntry:
        return ParameterEntry(names[0], kind, shape, dtype, nbytes, aliases=names[1:], **more)

    if not found:
        allowing = [pattern for pattern in patterns if any(fnmatchcase(name, pattern) for name in names)]
        return entry("allowed_missing", reason=f"--allow-missing {allowing[0]}") if allowing else entry("missing")
    tensor = remapped.tensors[found[0]]
    origins = tuple(dict.fromkeys(origin for name in found for origin in remapped.origins[name]))
    got = {"origins": origins, "found_shape": tuple(tensor.shape), "found_dtype": _dtype_name(tensor.dtype)}
    reason = _misfit(shape, dtype, tensor)
    differing = [name for name in found[1:] if not equal_bits(tensor, remapped.tensors[name])]
    if not reason and differing:
        reason = f"the network shares it with {differing[0]!r}, and the file has different values for the two"
    if reason:
        _record(fates, origins, _Fate("misshapen", names[0], reason))
        return entry("misshapen", reason=reason, **got)
    for origin in origins:
        fates[origin].append(_Fate("loaded" if origin.source == remapped.primary else "backfilled", names[0]))
    own = all(origin.source == remapped.primary for origin in origins)
    return entry("loaded" if own else "backfilled", **got)


def _misfit(shape: tuple[int, ...], dtype: str, tensor: torch.Tensor) -> str:
    if tuple(tensor.shape) != shape:
        return f"the file has {list(tensor.shape)}, the network {list(shape)}"
    given = _dtype_name(tensor.dtype)
    if given == dtype or (given in _FLOATS and dtype in _FLOATS):
        return ""
    if given in _INTEGERS and dtype in _INTEGERS and _INTEGERS.index(given) < _INTEGERS.index(dtype):
        return ""
    return f"the file has {given}, the network {dtype}"


def _key(origin: Origin, found: Sequence[_Fate], tensor: torch.Tensor) -> KeyEntry:
    kind = min((fate.kind for fate in found), key=_WORST_FIRST.index)
    reasons = dict.fromkeys(fate.reason for fate in found if fate.kind == kind and fate.reason)
    return KeyEntry(
        origin=origin,
        kind=kind,
        shape=tuple(tensor.shape),
        dtype=_dtype_name(tensor.dtype),
        nbytes=tensor.numel() * tensor.element_size(),
        targets=tuple(dict.fromkeys(fate.target for fate in found if fate.target)),
        reason="; ".join(reasons),
    )


def _dtype_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _item_size(dtype: str) -> int:
    known = getattr(torch, dtype, None)
    return known.itemsize if isinstance(known, torch.dtype) else 0


def load_into(
    network: torch.nn.Module | Mapping[str, torch.nn.Module],
    remapped: Remapped,
    report: WeightReport,
    *,
    hint: str | None = None,
) -> None:
    """Copy the tensors into the network, converting dtypes as the report says.

    Raises `WeightsError`, with nothing copied, when the report names anything missing, unexpected or misshapen (`hint`
    may say which other matcher fits), when it is not of this network, when the network is on the meta device, or when
    a conversion would turn finite values into infinities.
    """
    if not report.ok:
        raise WeightsError(refusal(report), hint=hint or _absent_hint(report))
    state = network_state(network)
    known = {name for entry in report.parameters for name in (entry.name, *entry.aliases)}
    if known != set(state):
        name = sorted(known ^ set(state))[0]
        raise WeightsError(f"the weight report is of another network: {name!r} is in only one of the two")
    ready: dict[str, torch.Tensor] = {}
    for entry in report.of_parameters("loaded", "backfilled"):
        source = next(name for name in (entry.name, *entry.aliases) if name in remapped.tensors)
        ready[entry.name] = _converted(source, remapped.tensors[source], state[entry.name])
    with torch.no_grad():
        for name, tensor in ready.items():
            state[name].copy_(tensor)


def _converted(name: str, tensor: torch.Tensor, destination: torch.Tensor) -> torch.Tensor:
    if destination.device.type == "meta" or tensor.device.type == "meta":
        raise WeightsError(f"{name!r} is on the meta device, which holds no values: build the network on the CPU first")
    if tensor.dtype == destination.dtype:
        return tensor
    converted = tensor.to(destination.dtype)
    if converted.is_floating_point() and not torch.equal(converted.isfinite(), tensor.isfinite()):
        raise WeightsError(f"{name!r} has values that {_dtype_name(destination.dtype)} cannot hold")
    return converted


def refusal(report: WeightReport) -> str:
    """Return the message for a report that is not ok: one line of counts, then the names of each class."""
    missing, misshapen = report.of_parameters("missing"), report.of_parameters("misshapen")
    unexpected = report.of_keys("unexpected")
    lines = [
        f"the weights do not fit: {len(missing)} missing, {len(unexpected)} unexpected, {len(misshapen)} misshapen"
    ]
    lines += _listed("missing from the file", [entry.name for entry in missing])
    lines += _listed(
        "unexpected in the file", [f"{e.origin.key} ({e.reason})" if e.reason else e.origin.key for e in unexpected]
    )
    lines += _listed("misshapen", [f"{entry.name}: {entry.reason}" for entry in misshapen])
    return "\n".join(lines)


def _listed(title: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = [f"    … and {len(names) - SHOWN_NAMES} more"] if len(names) > SHOWN_NAMES else []
    return [f"  {title}:", *(f"    {name}" for name in names[:SHOWN_NAMES]), *more]


def _absent_hint(report: WeightReport) -> str | None:
    if not report.absent_sources or not report.of_parameters("missing"):
        return None
    sources = ", ".join(sorted({source for source, _ in report.absent_sources}))
    return f"This matcher can take weights from a second file, which was not given: {sources}."
