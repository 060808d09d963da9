"""Read a checkpoint file into tensors, without ever running code from it.

safetensors goes through the safetensors library; PyTorch files through `torch.load(weights_only=True)`, and there is
no other way in: a file that this refuses is refused. See `names` for the canonical form of the keys.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from matchrt.errors import WeightsError
from matchrt.weights.containers import Kind, identify
from matchrt.weights.hashing import file_sha256
from matchrt.weights.names import strip_prefixes, unwrap
from matchrt.weights.pickles import suspicious_globals
from matchrt.weights.safetensors_header import read_header

_RESAVE = (
    "If you trust its origin, save only the tensors where it was made: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
)


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors by canonical name, on the CPU, and where they came from.

    `tensors` may be memory-mapped: copy before writing. `original_names` maps each canonical name to the file's own;
    `wrappers` lists the containers and prefixes that were removed, outermost first; `notes` names what else is in
    the file and was not read. `sha256` is the whole file's, `size_bytes` its length.
    """

    path: Path
    container: Kind
    wrappers: tuple[str, ...]
    tensors: Mapping[str, torch.Tensor]
    original_names: Mapping[str, str]
    sha256: str
    size_bytes: int
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read `path` (safetensors, or a PyTorch file of either generation).

    Raises `WeightsError` for a file that is missing, empty, truncated, of another kind, inconsistent, without
    tensors, or that would have to run code to be read.
    """
    path = Path(path)
    kind = identify(path)
    digest = file_sha256(path)
    containers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] | None = None
    if kind == "safetensors":
        metadata = read_header(path).metadata
        found = _load_safetensors(path)
    else:
        unwrapped = unwrap(_load_torch(path, kind), lambda value: isinstance(value, torch.Tensor))
        if unwrapped.problems:
            raise WeightsError(f"{path}: {unwrapped.problems[0]}", hint=_RESAVE)
        found, containers, notes = unwrapped.tensors, tuple(unwrapped.containers), tuple(unwrapped.notes)
    if not found:
        beside = f" (it has {', '.join(notes[:5])})" if notes else ""
        raise WeightsError(f"{path} holds no tensors{beside}")
    canonical, prefixes = strip_prefixes(found)
    return Checkpoint(
        path=path,
        container=kind,
        wrappers=(*containers, *prefixes),
        tensors={canonical[name]: _plain(path, name, tensor) for name, tensor in found.items()},
        original_names={new: old for old, new in canonical.items()},
        sha256=digest,
        size_bytes=path.stat().st_size,
        notes=notes,
        metadata=metadata,
    )


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {_first_line(error)}") from error


def _load_torch(path: Path, kind: Kind) -> Any:
    """Load with `weights_only=True`: mapped where torch can, else through an open file, whose suffix torch ignores."""
    # torch.load takes a path that ends in .safetensors for one, and would map compressed members as if they were not.
    mmap = kind == "torch-zip" and path.suffix != ".safetensors" and _is_uncompressed(path)
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            return torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)
    except MemoryError as error:
        raise WeightsError(f"{path} declares more data than this machine has memory for") from error
    except Exception as error:  # whatever a damaged or hostile pickle provokes in the unpickler
        raise _explain(path, error) from error


def _is_uncompressed(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _explain(path: Path, error: Exception) -> WeightsError:
    text = str(error)
    named = re.findall(r"[Uu]nsupported (?:GLOBAL|global: GLOBAL) (\S+)", text)
    named += [name for name in suspicious_globals(path) if name not in named]
    if named:
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        return WeightsError(
            f"{path} was refused and nothing in it was run: reading it would call {', '.join(named[:3])}{more}, "
            "and a weights file needs no code",
            hint=_RESAVE,
        )
    if isinstance(error, EOFError) or re.search(r"unexpected EOF|Ran out of input|corrupted|central directory", text):
        return WeightsError(
            f"{path} is truncated or damaged ({path.stat().st_size} bytes): {_first_line(error)}",
            hint="Download or copy the file again.",
        )
    if re.search(r"can't allocate|out of memory|bad_alloc", text, re.IGNORECASE):
        return WeightsError(f"{path} declares more data than this machine has memory for")
    return WeightsError(f"{path} cannot be read as a PyTorch checkpoint: {_first_line(error)}", hint=_RESAVE)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Weights only load", "Please file", "(1)", "(2)"))]
    return (telling or lines or [type(error).__name__])[0][:300]


def _plain(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` without autograd, or refuse what is not a dense tensor with all its data in the file."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise WeightsError(f"{path}: {name!r} is not a dense tensor ({tensor.layout}, {tensor.dtype})", hint=_RESAVE)
    if tensor.device.type != "cpu":
        raise WeightsError(f"{path}: {name!r} has no data in the file (device {tensor.device.type!r})", hint=_RESAVE)
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise WeightsError(
            f"{path}: {name!r} is refused: it declares {tensor.numel() * tensor.element_size()} bytes "
            f"{list(tensor.shape)}, the file stores {tensor.untyped_storage().nbytes()}",
            hint=_RESAVE,
        )
    return tensor.detach()
