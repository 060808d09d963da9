"""Matches as npz and as JSON: arrays by name, and metadata."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchrt.errors import MatchrtError, UsageError
from matchrt.files.atomic import atomic_file, atomic_write_text

Arrays = Mapping[str, NDArray[Any]]
FORMAT = "matchrt-matches"
VERSION = 1
_REQUIRED = {"keypoints0": 2, "keypoints1": 2, "scores": 1}
_METADATA = "metadata_json"


def save_npz(path: str | os.PathLike[str], arrays: Arrays, metadata: Mapping[str, Any]) -> None:
    """Write `arrays` under their names, and `metadata` as JSON text in a string array named `metadata_json`.

    Needs `keypoints0` and `keypoints1` (N, 2) and `scores` (N,); further arrays are kept as they are. Nothing is
    pickled: an array of objects raises `UsageError`. The same content gives the same bytes.
    """
    _check(arrays)
    text = _dumps({"format": FORMAT, "version": VERSION, **metadata})
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **{_METADATA: np.array(text)}, **dict(arrays))  # type: ignore[arg-type]


def load_npz(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and metadata of a file that `save_npz` wrote. No pickle is read.

    Raises `MatchrtError` for a file that is not one.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        metadata = json.loads(str(arrays.pop(_METADATA)))
        return _loaded(arrays, metadata)
    except FileNotFoundError:
        raise _unreadable(path, "it does not exist") from None
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        UsageError,
    ) as error:
        raise _unreadable(path, error) from None


def save_json(path: str | os.PathLike[str], arrays: Arrays, metadata: Mapping[str, Any]) -> None:
    """Write one JSON object: metadata first, then each array as nested lists. Arrays as for `save_npz`.

    Float32 values are written with the fewest digits that read back to the same float32.
    """
    _check(arrays)
    content = {"format": FORMAT, "version": VERSION, **metadata}
    atomic_write_text(path, _dumps(content | {name: _listed(array) for name, array in arrays.items()}) + "\n")


def load_json(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and metadata of a file that `save_json` wrote: the arrays of matches become float32, `indices` int32."""
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        metadata = {name: v for name, v in content.items() if not _is_array(name, v)}
        arrays = {name: _array(name, v) for name, v in content.items() if _is_array(name, v)}
        return _loaded(arrays, metadata)
    except FileNotFoundError:
        raise _unreadable(path, "it does not exist") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise _unreadable(path, error) from None


_ARRAY_SHAPES: dict[str, tuple[int, ...]] = {
    "keypoints0": (-1, 2),
    "keypoints1": (-1, 2),
    "scores": (-1,),
    "indices": (-1, 2),
    "all_keypoints0": (-1, 2),
    "all_keypoints1": (-1, 2),
}


def _is_array(name: str, value: Any) -> bool:
    return name in _ARRAY_SHAPES and isinstance(value, list)


def _array(name: str, value: list[Any]) -> NDArray[Any]:
    dtype: Any = np.int32 if name == "indices" else np.float32
    return np.array(value, dtype=dtype).reshape(_ARRAY_SHAPES[name])


def _listed(array: NDArray[Any]) -> Any:
    if array.dtype == np.float32 and array.size:
        return array.astype("U32").astype(np.float64).tolist()  # the shortest text of a float32, not of its double
    return array.tolist()


def _loaded(arrays: dict[str, NDArray[Any]], metadata: Any) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    if not isinstance(metadata, dict) or metadata.pop("format", None) != FORMAT:
        raise UsageError(f"it is not marked as {FORMAT}")
    version = metadata.pop("version", None)
    if version != VERSION:
        raise UsageError(f"it is of version {version}, and this release reads version {VERSION}")
    _check(arrays)
    return arrays, metadata


def _check(arrays: Arrays) -> None:
    missing = [name for name in _REQUIRED if name not in arrays]
    if missing:
        raise UsageError(f"matches need the arrays {', '.join(_REQUIRED)}; {', '.join(missing)} is missing")
    count = len(arrays["scores"])
    for name, axes in _REQUIRED.items():
        expected = (count, 2) if axes == 2 else (count,)
        if arrays[name].shape != expected:
            raise UsageError(f"{name} must have shape {expected}; got {arrays[name].shape}")
    for name, array in arrays.items():
        if array.dtype.hasobject or name == _METADATA:
            raise UsageError(f"the array {name!r} of dtype {array.dtype} cannot be saved")


def _dumps(content: Mapping[str, Any]) -> str:
    try:
        return json.dumps(content, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the matches cannot be written as JSON: {error}") from None


def _unreadable(path: str | os.PathLike[str], reason: object) -> MatchrtError:
    text = " ".join(str(reason).split()) or type(reason).__name__
    return MatchrtError(f"{os.fspath(path)} cannot be read as matches: {text}", hint="name a file that was saved here")
