"""Half-precision safetensors with the published names.

uv run python plugins/lightglue/training/export.py RUN plugins/lightglue/src/matchrt_lightglue/data/mini
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

LICENCE = {"licence": "Apache-2.0", "trained by": "matchrt, plugins/lightglue/training"}


def write(state: dict[str, Tensor], path: Path) -> None:
    """Write `state` in float16. Raises `OverflowError` if a weight does not fit."""
    half = {name: tensor.detach().cpu().to(torch.float16).contiguous() for name, tensor in state.items()}
    for name, tensor in half.items():
        if not torch.isfinite(tensor).all():
            raise OverflowError(f"{name} does not fit float16")
    save_file(half, path, metadata=LICENCE)


def main() -> None:
    """Turn `superpoint.pt` and `lightglue.pt` of a run into the two shipped files."""
    run, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("superpoint", "lightglue"):
        path = folder / f"{name}_mini.safetensors"
        write(torch.load(run / f"{name}.pt", map_location="cpu", weights_only=True), path)
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
