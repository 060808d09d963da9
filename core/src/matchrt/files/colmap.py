"""Text files that COLMAP imports.

`colmap feature_importer --import_path FOLDER` reads the keypoints of `FOLDER/<image name>.txt`, and
`colmap matches_importer --match_type raw --match_list_path FILE` the matches: for each pair a line with both image names,
one line for each match with its two keypoint indices, and an empty line. COLMAP has the first pixel's centre at
(0.5, 0.5), so half a pixel is added here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchrt.errors import UsageError
from matchrt.files.atomic import atomic_write_text


def save_colmap_matches(path: str | os.PathLike[str], pairs: Mapping[tuple[str, str], NDArray[Any]]) -> None:
    """Write a match list. Each pair (name0, name1) has int (M, 2) rows: the keypoint indices in either image.

    Raises `UsageError` for a name with white space, which the format cannot hold.
    """
    blocks = []
    for names, indices in pairs.items():
        if indices.ndim != 2 or indices.shape[1] != 2 or indices.dtype.kind not in "iu":
            raise UsageError(f"{names}: matches are integer (M, 2); got {indices.dtype} of shape {indices.shape}")
        lines = [" ".join(_checked_name(name) for name in names), *(f"{i} {j}" for i, j in indices.tolist())]
        blocks.append("\n".join(lines) + "\n")
    atomic_write_text(path, "\n".join(blocks) + "\n" if blocks else "")


def save_colmap_features(folder: str | os.PathLike[str], name: str, keypoints: NDArray[Any]) -> Path:
    """Write `FOLDER/<name>.txt` with keypoints float (N, 2) as (x, y), pixel centres at integers. Returns the path.

    The importer insists on SIFT's line: x, y, scale, orientation and 128 descriptor values. Scale is 1, the rest is
    0: the descriptors must not be matched by COLMAP itself.
    """
    if keypoints.ndim != 2 or keypoints.shape[1] != 2:
        raise UsageError(f"{name}: keypoints are (N, 2); got shape {keypoints.shape}")
    path = Path(folder, _checked_name(name) + ".txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    tail = " 1 0" + " 0" * 128 + "\n"
    shifted = keypoints.astype(np.float64) + 0.5
    atomic_write_text(path, f"{len(keypoints)} 128\n" + "".join(f"{x:.9g} {y:.9g}{tail}" for x, y in shifted.tolist()))
    return path


def _checked_name(name: str) -> str:
    if not name or any(c.isspace() for c in name):
        raise UsageError(f"COLMAP's text format cannot hold the image name {name!r}", hint="rename it without spaces")
    if name.startswith("/") or ".." in name.split("/"):
        raise UsageError(f"{name!r} is not an image name relative to the image folder", hint="for example db/001.jpg")
    return name
