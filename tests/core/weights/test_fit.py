"""Fits and descriptions: which matcher a file belongs to, and what it holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from matchrt.errors import WeightsError
from matchrt.weights.describe import describe
from matchrt.weights.fit import Candidate, better_fit, fit
from matchrt.weights.readers import read_checkpoint
from matchrt.weights.rules import Backfill, Concatenate, Constant, Drop, Interleave, Rename, Same

SPLIT = Candidate("split", "v1", [Rename.prefix("old.", "")], {"a.w": (2, 2), "a.b": (2,), "c.w": (4,), "c.b": (1,)})
LIKE = Candidate("like", "v2", [], {"a.w": (2, 2), "a.b": (3,), "x": (1,), "y": (1,)})
FILLED = Candidate(
    "filled",
    "v1",
    [Drop("n", "counter"), Backfill(r"dino\..*", "dinov2"), Constant("t", (0.5,), "built in")],
    {"head.w": (2,), **{f"dino.{i}": (1,) for i in range(50)}},
)
JOINED = Candidate(
    "joined",
    "v1",
    [
        Concatenate(("q", "k", "v"), "qkv", layout=Interleave(heads=2)),
        Same(("e", "f"), "g"),
    ],
    {"qkv": (12, 3), "g": (1,)},
)


def test_fits_are_ranked_by_share_of_names_with_equal_shapes() -> None:
    shapes = {"old.a.w": (2, 2), "old.a.b": (2,), "old.c.w": (4,), "old.c.b": (1,)}
    first, *rest = fit(shapes, [LIKE, FILLED, SPLIT])
    assert (first.matcher, first.share, first.matched) == ("split", 1.0, 4)
    assert all(f.share == 0 for f in rest)
    same_names = {"a.w": (2, 2), "a.b": (2,), "c.w": (4,)}
    first, second, _ = fit(same_names, [LIKE, FILLED, SPLIT])
    assert (first.matcher, first.share, first.missing) == ("split", 3 / 4, 1)
    assert (second.matcher, second.matched, second.misshapen, second.unexpected, second.missing) == ("like", 1, 1, 1, 2)
    assert second.share == 1 / 5


def test_what_a_second_file_provides_does_not_count_against_a_fit() -> None:
    (found,) = fit({"head.w": (2,), "n": (), "t": (1,)}, [FILLED])
    assert (found.share, found.backfillable, found.dropped, found.missing) == (1.0, 50, 2, 0)
    assert found.sources == ("dinov2",)


def test_layout_rules_work_on_shapes_alone() -> None:
    shapes = {"q": (4, 3), "k": (4, 3), "v": (4, 3), "e": (1,), "f": (1,)}
    assert fit(shapes, [JOINED])[0].share == 1.0
    (broken,) = fit({"q": (4, 3)}, [JOINED])
    assert broken.share == 0.0
    assert "needs 3 keys" in broken.problem
    assert json.loads(json.dumps(broken.to_dict()))["matched"] == 0


def test_no_names_no_fit() -> None:
    assert fit({}, [Candidate("m", "v", [], {})])[0].share == 0.0


def test_a_better_fit_is_named_only_when_it_is_one() -> None:
    fits = fit({"a.w": (2, 2), "a.b": (2,), "c.w": (4,)}, [LIKE, SPLIT])
    sentence = better_fit(fits, "like", "v2")
    assert sentence == "This file fits split (v1) better: 75.0% of the names and shapes, against 20.0% for like (v2)."
    assert better_fit(fits, "split", "v1") is None
    assert better_fit(fit({"zzz": (1,)}, [LIKE, SPLIT]), "like", "v2") is None
    assert better_fit([], "like", "v2") is None


def content() -> dict[str, torch.Tensor]:
    return {
        "encoder.cnn.0.w": torch.zeros(4, 3),
        "encoder.cnn.0.b": torch.zeros(4).half(),
        "encoder.norm.w": torch.zeros(2),
        "decoder.proj.w": torch.zeros(5),
        "decoder.n": torch.tensor(3),
    }


@pytest.mark.parametrize("kind", ["safetensors", "torch-zip", "torch-legacy"])
def test_describe_agrees_with_reading(tmp_path: Path, kind: str) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in content().items()}
    if kind == "safetensors":
        save_file(wrapped, tmp_path / "w", metadata={"format": "pt"})
    else:
        torch.save(
            {"state_dict": wrapped, "epoch": 4}, tmp_path / "w", _use_new_zipfile_serialization=kind == "torch-zip"
        )
    found, read = describe(tmp_path / "w"), read_checkpoint(tmp_path / "w")
    assert (found.container, found.wrappers, found.sha256, found.notes) == (
        kind, read.wrappers, read.sha256, read.notes,
    )  # fmt: skip
    assert found.shapes == {name: tuple(tensor.shape) for name, tensor in read.tensors.items()}
    assert found.dtypes == {"float32": 3, "float16": 1, "int64": 1}
    assert (found.tensors, found.elements, found.nbytes) == (5, 24, 12 * 4 + 4 * 2 + 2 * 4 + 5 * 4 + 8)
    groups = {group.name: (group.count, group.elements) for group in found.groups}
    assert groups == {"encoder.cnn": (2, 16), "encoder.norm": (1, 2), "decoder.proj": (1, 5), "decoder": (1, 1)}
    data = json.loads(json.dumps(found.to_dict()))
    assert data["container"] == kind
    assert len(data["groups"]) == 4


def test_groups_by_first_component_when_there_are_enough(tmp_path: Path) -> None:
    save_file({f"{p}.{i}.w": torch.zeros(1) for p in "abc" for i in range(4)}, tmp_path / "w")
    assert [(g.name, g.count) for g in describe(tmp_path / "w").groups] == [("a", 4), ("b", 4), ("c", 4)]


def test_safetensors_are_described_without_torch(tmp_path: Path) -> None:
    save_file(content(), tmp_path / "w")
    code = (
        "import sys\nfrom matchrt.weights.describe import describe\n"
        f"print(describe({str(tmp_path / 'w')!r}).tensors, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5", "False"]


def test_describe_refuses_what_reading_refuses(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"<html>")
    with pytest.raises(WeightsError, match="saved web page"):
        describe(tmp_path / "w")
    with pytest.raises(WeightsError, match="does not exist"):
        describe(tmp_path / "none")
