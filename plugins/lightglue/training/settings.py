"""Reading `config.toml`, and the photographs it names."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent

FOLDERS = {
    "skimage": ("skimage", "data"),
    "sklearn": ("sklearn", "datasets/images"),
    "matplotlib": ("matplotlib", "mpl-data/sample_data"),
}


def load_config(path: Path, *, smoke: bool) -> dict[str, Any]:
    """The tables of `path`; with `smoke`, its table of that name laid over the others."""
    config = tomllib.loads(path.read_text())
    changes = config.pop("smoke", {})
    if smoke:
        for name, table in changes.items():
            config[name] = {**config[name], **table}
    return config


def photograph(name: str, folder: Path | None = None) -> np.ndarray:
    """The photograph `PACKAGE:FILE` as (H, W) uint8 grey.

    `folder` holds copies of files whose package is not installed. Raises `FileNotFoundError` naming the package.
    """
    package, file = name.split(":")
    candidates = [folder / file] if folder else []
    spec = importlib.util.find_spec(FOLDERS[package][0])
    if spec and spec.origin:
        candidates.append(Path(spec.origin).parent / FOLDERS[package][1] / file)
    for candidate in candidates:
        if candidate.is_file():
            image = cv2.imread(str(candidate), cv2.IMREAD_GRAYSCALE)
            if image is not None:
                return image
    raise FileNotFoundError(
        f"{name}: install the package (`uv run --with scikit-learn --with matplotlib --with scikit-image …`)"
    )


def installed(names: list[str], folder: Path | None = None) -> list[np.ndarray]:
    """The photographs among `names` that are installed; at least one must be."""
    found = []
    for name in names:
        try:
            found.append(photograph(name, folder))
        except FileNotFoundError:
            print(f"left out: {name} is not installed", file=sys.stderr)
    if not found:
        raise FileNotFoundError(f"none of {names} is installed")
    return found
