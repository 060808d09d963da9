"""Weights through the timm library: a second source for what it publishes too, used only when it is asked for. No torch at import.

timm downloads with its own loader (the Hugging Face hub, pickles never) and fills its own model, strictly: a file that lacks a tensor
is refused, nothing stays random. The model's tensors are then kept as safetensors beside what `fetch` downloads, under timm's names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matchrt.errors import DownloadError, EnvironmentLackError
from matchrt.model import MatcherSpec, WeightsFile
from matchrt.weights.fetch import Fetched, cache_folder, is_offline, keep

WORD = "timm"
"""What is written in place of a file, as in `--weights-dinov2 timm`."""


def timm_path(spec: MatcherSpec, file: WeightsFile) -> Path:
    """Where the copy of `file` from timm is kept."""
    return cache_folder() / spec.id / f"{file.timm}.safetensors"


def fetch_with_timm(spec: MatcherSpec, file: WeightsFile, *, offline: bool = False) -> Fetched:
    """Make the copy of `file` from timm, unless it is there; its sha256 is recorded and held to from then on.

    Raises `EnvironmentLackError` without timm, `DownloadError` where timm cannot get the weights.
    """

    def write(part: Path) -> None:
        if offline or is_offline():
            raise _unreachable(file, "network access is off (MATCHRT_OFFLINE or --offline)")
        _save(_load(file), part, file.timm)

    return keep(f"timm:{file.timm}", timm_path(spec, file), write)


def _load(file: WeightsFile) -> dict[str, Any]:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise EnvironmentLackError(
            f"getting {file.timm} through timm needs {error.name}, which is not installed",
            hint=f"pip install 'matchrt[convert]', or give {file.filename} to --weights-{file.role}",
        ) from None
    try:
        model = timm.create_model(file.timm, pretrained=True)
    except Exception as error:  # timm, the hub and the network raise classes of their own
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise _unreachable(
            file, f"timm {timm.__version__} could not get it: {type(error).__name__}: {reason}"
        ) from error
    state: dict[str, Any] = model.state_dict()
    return state


def _save(state: dict[str, Any], path: Path, name: str) -> None:
    from safetensors.torch import save_file

    # No version in it: the same weights give the same file, whichever timm wrote it.
    save_file(
        {n: t.contiguous() for n, t in state.items()}, str(path), metadata={"format": "pt", "source": f"timm {name}"}
    )


def _unreachable(file: WeightsFile, why: str) -> DownloadError:
    return DownloadError(
        f"no {file.timm} from timm: {why}",
        hint=f"download {file.url} on another machine and give it to --weights-{file.role}",
    )
