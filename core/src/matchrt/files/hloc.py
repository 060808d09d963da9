"""hloc's HDF5 layout, which its reconstruction and localisation scripts read as they are.

Features: a group named like the image, with `keypoints` (N, 2), `descriptors` (D, N), `scores` (N,) and `image_size`
(width, height). Matches: a group `a-1.jpg/b-2.jpg` for the images `a/1.jpg` and `b/2.jpg`, with `matches0` (N,), the index
in the second image or -1, and `matching_scores0` (N,). Pixel centres are at integers, in hloc and here alike.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchrt.errors import EnvironmentLackError, MatchrtError, UsageError
from matchrt.files.atomic import atomic_file


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """One image's features: `keypoints` float (N, 2) as (x, y), `size` (height, width), `scores` (N,) and `descriptors`
    (N, D) where the matcher has them.
    """

    keypoints: NDArray[Any]
    size: tuple[int, int]
    scores: NDArray[Any] | None = None
    descriptors: NDArray[Any] | None = None


MatchRow = tuple[NDArray[Any], NDArray[Any]]
"""`matches0` int (N,) with -1 for none, and `matching_scores0` float (N,)."""


def pair_name(name0: str, name1: str) -> str:
    """The group of a pair: both names with `/` replaced by `-`, joined by `/`."""
    return "/".join(name.replace("/", "-") for name in (name0, name1))


def save_hloc_features(
    path: str | os.PathLike[str], images: Mapping[str, ImageFeatures], *, append: bool = False
) -> None:
    """Write one group for each image. With `append`, groups already in the file stay unless named again.

    Appending copies the file first, so that an interruption leaves the old one. Raises `EnvironmentLackError` without
    h5py.
    """
    with _file(path, append) as file:
        for name, features in images.items():
            _write_features(file, name, features)


def save_hloc_matches(
    path: str | os.PathLike[str], pairs: Mapping[tuple[str, str], MatchRow], *, append: bool = False
) -> None:
    """Write one group for each pair (name0, name1). `append` and errors as in `save_hloc_features`."""
    with _file(path, append) as file:
        for names, row in pairs.items():
            _write_matches(file, names, row)


def save_hloc_pair(
    path: str | os.PathLike[str], names: tuple[str, str], features: tuple[ImageFeatures, ImageFeatures], row: MatchRow
) -> None:
    """Write both images and their pair into one new file, which hloc reads as its features and as its matches."""
    with _file(path, append=False) as file:
        for name, image in zip(names, features, strict=True):
            _write_features(file, name, image)
        _write_matches(file, names, row)


def _write_features(file: Any, name: str, features: ImageFeatures) -> None:
    count = len(features.keypoints)
    if features.keypoints.shape != (count, 2):
        raise UsageError(f"{name}: keypoints are (N, 2); got shape {features.keypoints.shape}")
    group = file.require_group(_checked_name(name))
    _put(group, "keypoints", features.keypoints.astype(np.float32))
    _put(group, "image_size", np.array(features.size[::-1], dtype=np.int64))
    for key, values in (("scores", features.scores), ("descriptors", features.descriptors)):
        if values is None:
            continue
        if len(values) != count:
            raise UsageError(f"{name}: {count} keypoints, but {key} of shape {values.shape}")
        _put(group, key, values.T)


def _write_matches(file: Any, names: tuple[str, str], row: MatchRow) -> None:
    matches0, scores0 = row
    if matches0.ndim != 1 or matches0.shape != scores0.shape or matches0.dtype.kind not in "iu":
        raise UsageError(
            f"{names}: matches0 and scores are (N,), integer and float; got {matches0.shape}, {scores0.shape}"
        )
    group = file.require_group(pair_name(*(_checked_name(name) for name in names)))
    _put(group, "matches0", matches0.astype(np.int32))
    _put(group, "matching_scores0", scores0.astype(np.float32))


def _put(group: Any, key: str, values: NDArray[Any]) -> None:
    if key in group:
        del group[key]
    group.create_dataset(key, data=np.ascontiguousarray(values))


def _checked_name(name: str) -> str:
    if not name or name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        raise UsageError(f"{name!r} is not an image name relative to the image folder", hint="for example db/001.jpg")
    return name


@contextmanager
def _file(path: str | os.PathLike[str], append: bool) -> Iterator[Any]:
    try:
        import h5py
    except ImportError:
        raise EnvironmentLackError(
            f"writing {os.fspath(path)} needs h5py, which is not installed", hint="pip install 'matchrt[hdf5]'"
        ) from None
    with atomic_file(path) as temporary:
        old = append and Path(path).exists()
        if old:
            shutil.copyfile(path, temporary)
        try:
            file = h5py.File(temporary, "r+" if old else "w", track_order=not old)
        except OSError as error:
            raise MatchrtError(f"{os.fspath(path)} is not an HDF5 file: {error}", hint="name another file") from None
        with file:
            yield file
