"""One pair's matches in each built-in format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matchrt.files import colmap, hloc, plain

if TYPE_CHECKING:
    from matchrt.matches import Matches


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


def write_npz(path: Path, matches: Matches) -> None:
    """NumPy arrays, and the metadata as text."""
    sizes = {"size0": np.array(matches.size0, np.int64), "size1": np.array(matches.size1, np.int64)}
    plain.save_npz(path, _arrays(matches) | sizes, matches.metadata())


def write_json(path: Path, matches: Matches) -> None:
    """The same arrays as lists."""
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


def write_hloc(path: Path, matches: Matches) -> None:
    """Features and matches of the pair in hloc's layout."""
    keypoints0, keypoints1, indices = _lists(matches)
    matches0 = np.full(len(keypoints0), -1, dtype=np.int32)
    scores0 = np.zeros(len(keypoints0), dtype=np.float32)
    ascending = np.argsort(matches.scores, kind="stable")  # of several matches of one keypoint, the best stays
    matches0[indices[ascending, 0]] = indices[ascending, 1]
    scores0[indices[ascending, 0]] = matches.scores[ascending]
    features = hloc.ImageFeatures(keypoints0, matches.size0), hloc.ImageFeatures(keypoints1, matches.size1)
    hloc.save_hloc_pair(path, image_names(matches), features, (matches0, scores0))


def write_colmap(path: Path, matches: Matches) -> None:
    """COLMAP's match list, and each image's keypoints beside it in NAME.features."""
    keypoints0, keypoints1, indices = _lists(matches)
    names = image_names(matches)
    folder = path.with_suffix(".features")
    for name, keypoints in zip(names, (keypoints0, keypoints1), strict=True):
        colmap.save_colmap_features(folder, name, keypoints)
    colmap.save_colmap_matches(path, {names: indices})
