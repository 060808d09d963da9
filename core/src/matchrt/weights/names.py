"""Which parts of a checkpoint file are wrapping, and what its keys are called without it. No torch.

The canonical form, which rules see, is reached in three steps, all of them recorded:

1. Containers. While the value at hand is a dictionary in which exactly one of `CONTAINER_KEYS` leads to tensors,
   step into it (`{"state_dict": …}` from Lightning, `{"model": …}` from glue-factory, in any stack). What stands
   beside it (epoch, optimiser state) is noted, never read as weights.
2. Dictionaries of dictionaries. What is left is flattened with dots: DISK's `{"extractor": {"unet…": …}}` gives keys
   `extractor.unet…`. Such a name says what the tensors are, so it stays for the rules to see.
3. Prefixes. Those in `PREFIXES` are stripped from the start, repeatedly, while *every* key has the same one:
   `module._orig_mod.matcher.model.encoder…` becomes `encoder…`. A file that holds `matcher.…` beside `extractor.…`
   keeps both, because there the prefix tells them apart; `extractor.` and `keypoint_detector.` are never stripped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

CONTAINER_KEYS = ("state_dict", "model", "model_state_dict", "net", "network", "weights")
"""Dictionary keys that wrap a whole state dict and say nothing about what is in it."""

TRAINING_KEYS = frozenset({
    "optimizer", "optimizers", "optimizer_state", "optimizer_states", "optimizer_state_dict", "lr_scheduler",
    "lr_schedulers", "scheduler", "scheduler_state_dict", "callbacks", "loops", "hyper_parameters", "hparams",
    "epoch", "global_step", "step", "scaler", "grad_scaler", "amp_scaler", "conf", "config", "args", "eval", "losses",
})  # fmt: skip
"""Dictionary keys of training state: noted, and never taken for weights."""

PREFIXES = ("module.", "_orig_mod.", "model.", "matcher.")
"""Prefixes that wrapping modules add: DataParallel, torch.compile, Lightning modules and MatchAnything's two levels."""


def strip_prefixes(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return ({original name: canonical name}, prefixes removed, outermost first)."""
    mapping = {name: name for name in names}
    removed: list[str] = []
    while mapping:
        first = next(iter(mapping.values()))
        found = next((p for p in PREFIXES if first.startswith(p)), None)
        if found is None or not all(n.startswith(found) and len(n) > len(found) for n in mapping.values()):
            break
        mapping = {old: new[len(found) :] for old, new in mapping.items()}
        removed.append(found)
    return mapping, tuple(removed)


@dataclass
class Unwrapped:
    """Tensors by dotted name, the containers that were removed (outermost first), and notes about other entries."""

    tensors: dict[str, Any] = field(default_factory=dict)
    containers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def unwrap(content: object, is_tensor: Callable[[object], bool]) -> Unwrapped:
    """Find the tensors of a loaded file by the rules above. Trouble is put in `problems`, one line each."""
    result = Unwrapped()
    path = ""
    while isinstance(content, Mapping):
        found = [k for k in CONTAINER_KEYS if _has_tensors(content.get(k), is_tensor)]
        found = [k for k in found if isinstance(content[k], Mapping)]
        if len(found) > 1:
            result.problems.append(f"both {path + found[0]!r} and {path + found[1]!r} hold tensors")
            return result
        if not found or any(is_tensor(value) and key not in TRAINING_KEYS for key, value in content.items()):
            break
        for key, value in content.items():
            if key != found[0]:
                result.notes.append(f"{path}{key}: {_describe(value, is_tensor)}, not read")
        path += found[0] + "."
        result.containers.append(found[0])
        content = content[found[0]]
    if not isinstance(content, Mapping):
        result.problems.append(f"it holds {_describe(content, is_tensor)}, not tensors by name")
        return result
    _flatten(content, "", is_tensor, result, path)
    return result


def _flatten(
    content: Mapping[Any, Any], prefix: str, is_tensor: Callable[[object], bool], result: Unwrapped, path: str
) -> None:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if is_tensor(value):
            if name in result.tensors:
                result.problems.append(f"two tensors are both called {name!r} once nested names are joined")
            result.tensors[name] = value
        elif isinstance(value, Mapping) and _has_tensors(value, is_tensor) and (prefix or key not in TRAINING_KEYS):
            _flatten(value, name + ".", is_tensor, result, path)
        elif not (isinstance(value, Mapping) and not value):
            result.notes.append(f"{path}{name}: {_describe(value, is_tensor)}, not read")


def _has_tensors(value: object, is_tensor: Callable[[object], bool]) -> bool:
    return _count(value, is_tensor, 0) > 0


def _count(value: object, is_tensor: Callable[[object], bool], depth: int) -> int:
    if is_tensor(value):
        return 1
    if depth > 8:
        return 0
    if isinstance(value, Mapping):
        return sum(_count(item, is_tensor, depth + 1) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_count(item, is_tensor, depth + 1) for item in value)
    return 0


def _describe(value: object, is_tensor: Callable[[object], bool]) -> str:
    if is_tensor(value):
        return "a tensor"
    tensors = _count(value, is_tensor, 0)
    kind = type(value).__name__
    if isinstance(value, (Mapping, list, tuple)):
        return (
            f"{kind} of {len(value)} entries with {tensors} tensors" if tensors else f"{kind} of {len(value)} entries"
        )
    return kind
