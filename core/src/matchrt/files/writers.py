"""Output formats for matches, chosen by the file's suffix."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matchrt.errors import UsageError
from matchrt.files import colmap, hloc, plain

if TYPE_CHECKING:
    from matchrt.matches import Matches


@dataclass(frozen=True)
class Writer:
    """One output format. `write(path, matches)` writes a single pair, whole or not at all.

    `suffixes` are lower-case with their dot. `write` imports what it needs when it is called.
    """

    name: str
    suffixes: tuple[str, ...]
    description: str
    write: Callable[[Path, Matches], None]


def write_matches(
    path: str | os.PathLike[str], matches: Matches, *, writers: Mapping[str, Writer] | None = None
) -> None:
    """Write `matches` in the format of the path's suffix.

    `writers` maps suffixes to formats; by default the built-in ones. Raises `UsageError` for a suffix without a format,
    naming those that have one, and whatever the format raises.
    """
    known = {s: w for w in BUILT_IN for s in w.suffixes} if writers is None else writers
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in known:
        names = ", ".join(f"{s} ({w.description})" for s, w in known.items())
        problem = f"no format has the suffix {suffix!r}" if suffix else "it has no suffix to choose the format by"
        raise UsageError(f"cannot save matches to {target}: {problem}", hint=f"known suffixes: {names}")
    known[suffix].write(target, matches)


def image_names(matches: Matches) -> tuple[str, str]:
    """Names for the two images, for formats that need them: the file names, with as many folders as tell them apart.

    `image0` and `image1` where the images did not come from files.
    """
    sources = [matches.metadata().get(key) for key in ("image0", "image1")]
    parts = []
    for index, source in enumerate(sources):
        is_file = isinstance(source, str) and Path(source).suffix != "" and Path(source).is_file()
        parts.append(Path(str(source)).absolute().parts[1:] if is_file else (f"image{index}",))
    depth = 1
    while parts[0][-depth:] == parts[1][-depth:] and depth < max(map(len, parts)):
        depth += 1
    names = "/".join(parts[0][-depth:]), "/".join(parts[1][-depth:])
    return names if names[0] != names[1] else (f"0/{names[0]}", f"1/{names[1]}")


def _arrays(matches: Matches) -> dict[str, NDArray[Any]]:
    arrays = {"keypoints0": matches.keypoints0, "keypoints1": matches.keypoints1, "scores": matches.scores}
    for name in ("indices", "all_keypoints0", "all_keypoints1"):
        value = getattr(matches, name, None)
        if value is not None:
            arrays[name] = np.asarray(value)
    return arrays


def _write_npz(path: Path, matches: Matches) -> None:
    sizes = {"size0": np.array(matches.size0, np.int64), "size1": np.array(matches.size1, np.int64)}
    plain.save_npz(path, _arrays(matches) | sizes, matches.metadata())


def _write_json(path: Path, matches: Matches) -> None:
    plain.save_json(path, _arrays(matches), matches.metadata())


def _lists(matches: Matches) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Each image's keypoint list, and the matches as index pairs (M, 2) into them.

    A matcher without lists of its own gets one keypoint for each match.
    """
    lists = matches.all_keypoints0, matches.all_keypoints1
    if matches.indices is not None and lists[0] is not None and lists[1] is not None:
        return lists[0], lists[1], np.asarray(matches.indices)
    rows = np.arange(len(matches.scores), dtype=np.int32)
    return matches.keypoints0, matches.keypoints1, np.stack([rows, rows], axis=1)


def _write_hloc(path: Path, matches: Matches) -> None:
    keypoints0, keypoints1, indices = _lists(matches)
    matches0 = np.full(len(keypoints0), -1, dtype=np.int32)
    scores0 = np.zeros(len(keypoints0), dtype=np.float32)
    ascending = np.argsort(matches.scores, kind="stable")  # of several matches of one keypoint, the best stays
    matches0[indices[ascending, 0]] = indices[ascending, 1]
    scores0[indices[ascending, 0]] = matches.scores[ascending]
    features = hloc.ImageFeatures(keypoints0, matches.size0), hloc.ImageFeatures(keypoints1, matches.size1)
    hloc.save_hloc_pair(path, image_names(matches), features, (matches0, scores0))


def _write_colmap(path: Path, matches: Matches) -> None:
    keypoints0, keypoints1, indices = _lists(matches)
    names = image_names(matches)
    folder = path.with_suffix(".features")
    for name, keypoints in zip(names, (keypoints0, keypoints1), strict=True):
        colmap.save_colmap_features(folder, name, keypoints)
    colmap.save_colmap_matches(path, {names: indices})


BUILT_IN: tuple[Writer, ...] = (
    Writer("npz", (".npz",), "NumPy arrays and metadata", _write_npz),
    Writer("json", (".json",), "JSON", _write_json),
    Writer("hloc", (".h5", ".hdf5"), "hloc HDF5, features and matches; needs h5py", _write_hloc),
    Writer("colmap", (".txt",), "COLMAP match list, keypoints beside it in NAME.features", _write_colmap),
)
"""The formats that come with matchrt, in the order in which they are listed."""
