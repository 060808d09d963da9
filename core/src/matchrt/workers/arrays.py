"""Named arrays in a file, for another process: .npz without pickles, whatever the names are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_NAMES = "names"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write `arrays` to `path`, and return it."""
    names = np.frombuffer(json.dumps(list(arrays)).encode(), np.uint8)
    stored: dict[str, Any] = {_NAMES: names, **{f"a{i}": a for i, a in enumerate(arrays.values())}}
    np.savez(path, **stored)
    return path


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that `write_arrays` wrote."""
    with np.load(path, allow_pickle=False) as data:
        names = json.loads(data[_NAMES].tobytes())
        return {name: data[f"a{i}"] for i, name in enumerate(names)}
