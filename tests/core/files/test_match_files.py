"""What is written reads back the same, in our formats and by the rules of hloc and COLMAP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from matchrt.errors import EnvironmentLackError, MatchrtError, UsageError
from matchrt.files import (
    ImageFeatures,
    Writer,
    load_json,
    load_npz,
    save_colmap_features,
    save_colmap_matches,
    save_hloc_features,
    save_hloc_matches,
    save_json,
    save_npz,
    write_matches,
)
from matchrt.images import read_image
from matchrt.matches import Matches

RNG = np.random.default_rng(0)
METADATA = {"matcher": "test", "size0": [480, 640], "size1": [33, 77], "note": "é ∞"}


def arrays(count: int) -> dict[str, np.ndarray]:
    points = RNG.uniform(-1, 2000, (2, count, 2)).astype(np.float32)
    scores = RNG.random(count).astype(np.float32)
    return {"keypoints0": points[0], "keypoints1": points[1], "scores": scores}


def matches(count: int, **other: Any) -> Matches:
    return Matches(**arrays(count), size0=(480, 640), size1=(33, 77), **other)


@pytest.mark.parametrize("count", [0, 1, 500])
@pytest.mark.parametrize(("save", "load", "suffix"), [(save_npz, load_npz, "npz"), (save_json, load_json, "json")])
def test_there_and_back(tmp_path: Path, count: int, save: Any, load: Any, suffix: str) -> None:
    written = arrays(count) | {"indices": np.arange(2 * count, dtype=np.int32).reshape(count, 2)}
    path = tmp_path / f"a.{suffix}"
    save(path, written, METADATA)
    read, metadata = load(path)
    assert metadata == METADATA
    assert set(read) == set(written)
    for name, array in written.items():
        assert read[name].dtype == array.dtype, name
        assert np.array_equal(read[name], array), name
    first = path.read_bytes()
    save(path, written, METADATA)
    assert path.read_bytes() == first, "the same matches give the same bytes"


def test_json_is_plain_and_short(tmp_path: Path) -> None:
    data = arrays(1) | {"scores": np.array([0.1], np.float32)}
    save_json(tmp_path / "a.json", data, METADATA)
    text = (tmp_path / "a.json").read_text("utf-8")
    assert '"scores": [0.1]' in text
    assert np.allclose(json.loads(text)["keypoints0"], data["keypoints0"])


def test_npz_opens_with_numpy_alone(tmp_path: Path) -> None:
    data = arrays(3)
    save_npz(tmp_path / "a.npz", data, METADATA)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert np.array_equal(archive["keypoints1"], data["keypoints1"])


@pytest.mark.parametrize("save", [save_npz, save_json])
def test_incomplete_or_misshapen_arrays_are_refused_and_nothing_is_written(tmp_path: Path, save: Any) -> None:
    good = arrays(3)
    bad = [
        {k: v for k, v in good.items() if k != "scores"},
        good | {"keypoints1": good["keypoints1"][:2]},
        good | {"extra": np.array([object()])},
    ]
    for data in bad:
        with pytest.raises(UsageError):
            save(tmp_path / "a", data, METADATA)
    with pytest.raises(UsageError, match="JSON"):
        save(tmp_path / "a", good, {"thing": object()})
    assert not list(tmp_path.iterdir())


class Bomb:
    def __reduce__(self) -> Any:
        return (Path("/nowhere").mkdir, ())


def test_foreign_files_are_refused_without_running_their_code(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, keypoints0=np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(MatchrtError, match="cannot be read as matches"):
        load_npz(path)
    np.savez(path, **arrays(2))
    with pytest.raises(MatchrtError, match="metadata_json"):
        load_npz(path)
    save_npz(path, arrays(50), METADATA)
    whole = path.read_bytes()
    for data in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(MatchrtError, match="cannot be read") as caught:
            load_npz(path)
        assert "\n" not in caught.value.message
    for text in ("", "[]", "3", "{}", '{"format": "matchrt-matches", "version": 9}', "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(MatchrtError, match="cannot be read"):
            load_json(tmp_path / "a.json")
    for load in (load_npz, load_json):
        with pytest.raises(MatchrtError, match="does not exist"):
            load(tmp_path / "missing")


# hloc ---------------------------------------------------------------------------------------------------------------


def hloc_matches(path: Path, name0: str, name1: str) -> tuple[np.ndarray, np.ndarray]:
    """As hloc's reader has it: pairs of indices, and their scores."""
    with h5py.File(path, "r") as file:
        group = file["/".join((name0.replace("/", "-"), name1.replace("/", "-")))]
        row, scores = group["matches0"].__array__(), group["matching_scores0"].__array__()
    used = np.where(row != -1)[0]
    return np.stack([used, row[used]], -1), scores[used]


def test_hloc_features(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    points, descriptors = RNG.random((5, 2)), RNG.random((5, 128)).astype(np.float32)
    features = ImageFeatures(points, (480, 640), RNG.random(5), descriptors)
    save_hloc_features(path, {"db/1.jpg": features, "query.jpg": ImageFeatures(points[:0], (10, 20))})
    with h5py.File(path, "r") as file:
        group = file["db/1.jpg"]
        assert np.allclose(group["keypoints"], points)
        assert group["descriptors"].shape == (128, 5)
        assert np.array_equal(group["descriptors"][:, 2], descriptors[2])
        assert group["image_size"][()].tolist() == [640, 480]
        assert file["query.jpg/keypoints"].shape == (0, 2)
        assert "descriptors" not in file["query.jpg"]
    save_hloc_features(path, {"db/2.jpg": features, "query.jpg": features}, append=True)
    with h5py.File(path, "r") as file:
        assert sorted(file["db"]) == ["1.jpg", "2.jpg"]
        assert file["query.jpg/keypoints"].shape == (5, 2)
    save_hloc_features(path, {"only.jpg": features})
    with h5py.File(path, "r") as file:
        assert list(file) == ["only.jpg"]


def test_hloc_matches(tmp_path: Path) -> None:
    path = tmp_path / "matches.h5"
    row = np.array([2, -1, 40_000]), np.array([0.5, 0.0, 0.25], np.float32)
    save_hloc_matches(path, {("db/a/1.jpg", "q/2.jpg"): row})
    with h5py.File(path, "r") as file:
        assert list(file) == ["db-a-1.jpg"]
        assert list(file["db-a-1.jpg"]) == ["q-2.jpg"]
    indices, scores = hloc_matches(path, "db/a/1.jpg", "q/2.jpg")
    assert indices.tolist() == [[0, 2], [2, 40_000]]
    assert scores.tolist() == [0.5, 0.25]


def test_hloc_refuses_what_it_could_not_read_back(tmp_path: Path) -> None:
    for name in ("/abs.jpg", "", "a//b.jpg", "../x.jpg"):
        with pytest.raises(UsageError, match="image name"):
            save_hloc_features(tmp_path / "a.h5", {name: ImageFeatures(np.zeros((0, 2)), (1, 1))})
    with pytest.raises(UsageError, match="descriptors"):
        save_hloc_features(
            tmp_path / "a.h5", {"a.jpg": ImageFeatures(np.zeros((3, 2)), (1, 1), None, np.zeros((128, 3)))}
        )
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.h5").write_text("not HDF5")
    with pytest.raises(MatchrtError, match="not an HDF5 file"):
        save_hloc_features(tmp_path / "a.h5", {"a.jpg": ImageFeatures(np.zeros((3, 2)), (1, 1))}, append=True)
    assert (tmp_path / "a.h5").read_text() == "not HDF5"


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(EnvironmentLackError, match="h5py") as caught:
        write_matches(tmp_path / "a.h5", matches(3))
    assert "matchrt[hdf5]" in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())


# COLMAP -------------------------------------------------------------------------------------------------------------


def test_colmap_match_list(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    save_colmap_matches(path, {("a.jpg", "b/c.jpg"): np.array([[0, 5], [7, 1]]), ("x", "y"): np.zeros((0, 2), int)})
    assert path.read_text() == "a.jpg b/c.jpg\n0 5\n7 1\n\nx y\n\n"
    with pytest.raises(UsageError, match="cannot hold"):
        save_colmap_matches(path, {("my photo.jpg", "b"): np.zeros((0, 2), int)})
    with pytest.raises(UsageError, match="integer"):
        save_colmap_matches(path, {("a", "b"): np.zeros((3, 2))})


def test_colmap_features_start_at_half(tmp_path: Path) -> None:
    path = save_colmap_features(tmp_path / "f", "db/1.jpg", np.array([[0, 0], [10.25, 3]], np.float32))
    assert path == tmp_path / "f" / "db" / "1.jpg.txt"
    lines = path.read_text().splitlines()
    assert lines[0] == "2 128"
    values = [[float(v) for v in line.split()] for line in lines[1:]]
    assert [len(v) for v in values] == [4 + 128] * 2
    assert [v[:4] for v in values] == [[0.5, 0.5, 1, 0], [10.75, 3.5, 1, 0]]


# by suffix ----------------------------------------------------------------------------------------------------------


def sparse() -> Matches:
    lists = RNG.random((6, 2)).astype(np.float32), RNG.random((9, 2)).astype(np.float32)
    indices = np.array([[4, 8], [0, 3], [2, 2]], np.int32)
    return Matches(
        keypoints0=lists[0][indices[:, 0]],
        keypoints1=lists[1][indices[:, 1]],
        scores=np.array([0.5, 0.25, 1.0], np.float32),
        size0=(10, 20),
        size1=(30, 40),
        indices=indices,
        all_keypoints0=lists[0],
        all_keypoints1=lists[1],
    )


def test_npz_and_json_by_suffix(tmp_path: Path) -> None:
    wanted = sparse()
    wanted.save(tmp_path / "a.NPZ")
    read, metadata = load_npz(tmp_path / "a.NPZ")
    assert np.array_equal(read["indices"], wanted.indices)  # type: ignore[arg-type]
    assert read["size1"].tolist() == [30, 40]
    assert metadata["size0"] == [10, 20]
    wanted.save(tmp_path / "a.json")
    assert np.array_equal(load_json(tmp_path / "a.json")[0]["all_keypoints1"], wanted.all_keypoints1)  # type: ignore[arg-type]


def test_hloc_by_suffix_keeps_the_keypoint_lists(tmp_path: Path) -> None:
    wanted = sparse()
    wanted.save(tmp_path / "a.h5")
    indices, scores = hloc_matches(tmp_path / "a.h5", "image0", "image1")
    assert indices.tolist() == [[0, 3], [2, 2], [4, 8]]
    assert scores.tolist() == [0.25, 1.0, 0.5]
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert np.array_equal(file["image1/keypoints"], wanted.all_keypoints1)  # type: ignore[arg-type]
        assert file["image1/image_size"][()].tolist() == [40, 30]


def test_a_dense_matchers_matches_become_their_own_keypoints(tmp_path: Path) -> None:
    wanted = matches(7)
    wanted.save(tmp_path / "a.h5")
    indices, scores = hloc_matches(tmp_path / "a.h5", "image0", "image1")
    assert indices.tolist() == [[i, i] for i in range(7)]
    assert np.array_equal(scores, wanted.scores)


def test_one_keypoint_with_two_matches_keeps_the_better(tmp_path: Path) -> None:
    double = sparse().select(np.array([0, 1, 2]))
    assert double.indices is not None
    double.indices[:, 0] = [1, 1, 2]
    double.save(tmp_path / "a.h5")
    indices, scores = hloc_matches(tmp_path / "a.h5", "image0", "image1")
    assert indices.tolist() == [[1, 8], [2, 2]]
    assert scores.tolist() == [0.5, 1.0]


def test_colmap_by_suffix_uses_the_files_names(tmp_path: Path) -> None:
    images = []
    for folder in ("left", "right"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "1.png"
        from PIL import Image as PILImage

        PILImage.new("L", (20, 10)).save(path)
        images.append(read_image(path))
    from dataclasses import replace

    wanted = replace(sparse(), images=(images[0], images[1]))
    wanted.save(tmp_path / "out.txt")
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines == ["left/1.png right/1.png", "4 8", "0 3", "2 2", ""]
    for index, count in ((0, 6), (1, 9)):
        name = f"{('left', 'right')[index]}/1.png.txt"
        assert (tmp_path / "out.features" / name).read_text().splitlines()[0] == f"{count} 128"


@pytest.mark.parametrize("suffix", ["npz", "json", "h5", "txt"])
def test_no_matches_are_a_file_too(tmp_path: Path, suffix: str) -> None:
    Matches.empty((10, 20), (30, 40)).save(tmp_path / f"a.{suffix}")
    assert (tmp_path / f"a.{suffix}").stat().st_size > 0


@pytest.mark.parametrize("name", ["a.mat", "a", "a.npz.gz"])
def test_unknown_suffixes_name_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot save") as caught:
        write_matches(tmp_path / name, matches(3))
    assert all(s in (caught.value.hint or "") for s in (".npz", ".json", ".h5", ".txt"))
    assert not list(tmp_path.iterdir())


def write_count(path: Path, found: Matches) -> None:
    path.write_text(str(len(found)))


def test_other_writers_can_be_given(tmp_path: Path) -> None:
    writer = Writer(name="count", suffixes=(".count",), description="the number", write=f"{__name__}:write_count")
    write_matches(tmp_path / "a.count", matches(3), writers={".count": writer})
    assert (tmp_path / "a.count").read_text() == "3"
