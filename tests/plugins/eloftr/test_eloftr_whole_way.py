"""Checkpoints in their published forms to bundles, and photographs to matches, as a person types it; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from matchrt.bundle.manifest import FILE_NAME
from matchrt.cli import run
from matchrt.runtime import load
from matchrt.samples import sample_pairs

HEIGHT, WIDTH = 128, 160
SIZE = f"{HEIGHT}x{WIDTH}"
SHIFT = (16, 8)
Photographs = Any


def matched(capfd: pytest.CaptureFixture[str], tmp_path: Path, *argv: object) -> tuple[dict[str, Any], Any, str]:
    """`match` with `argv`: its JSON, the saved arrays, and stderr."""
    saved = tmp_path / "matches.npz"
    capfd.readouterr()
    assert run(["match", *map(str, argv), "--save", str(saved), "--json"]) == 0
    out, err = capfd.readouterr()
    with np.load(saved) as arrays:
        return json.loads(out), {n: arrays[n] for n in ("keypoints0", "keypoints1", "scores")}, err


@pytest.mark.parametrize(("variant", "count"), [("eloftr", 447), ("matchanything-eloftr", 447), ("eloftr:opt", 147)])
def test_every_key_of_a_checkpoint_is_accounted_for(bundles: Callable[[str], Path], variant: str, count: int) -> None:
    manifest = json.loads((bundles(variant) / FILE_NAME).read_text("utf-8"))
    counts = manifest["weights"]["report"]["counts"]
    assert counts["loaded"] == count
    assert not any(v for k, v in counts.items() if k not in ("loaded", "keys", "parameters")), counts
    assert manifest["settings"]["form"] == ("deploy" if count == 147 else "training")
    assert manifest["check"]["passed"]
    assert [a["name"] for a in manifest["axes"]] == ["pairs"]


def test_matches_of_photographs_and_a_truncation_that_is_told(
    bundles: Callable[[str], Path], photographs: Photographs, capfd: Any, tmp_path: Path, published: Any, plain: Any
) -> None:
    bundle = bundles("eloftr")
    result, found, err = matched(capfd, tmp_path, bundle, photographs.first, photographs.second)
    expected = plain(published).match(*photographs.arrays, 0.2)
    assert len(expected.cells) > 40 == result["matches"], "the photographs have more matches than the bundle has slots"
    best = np.sort(expected.scores)[::-1][:40]
    assert np.abs(np.sort(found["scores"])[::-1] - best).max() < 1e-3
    moved = found["keypoints0"] - found["keypoints1"] - np.array(SHIFT)
    assert np.median(np.abs(moved)) < 1.0
    assert len(result["notes"]) == 1
    assert "convert with more slots" in result["notes"][0]
    assert err.strip() == f"matchrt: {result['notes'][0]}"
    coffee = sample_pairs()[1].image0
    result, found, err = matched(capfd, tmp_path, bundle, photographs.first, coffee, "--threshold", "0.2")
    assert result["matches"] < 40
    assert (result["notes"], err) == ([], "")


def test_one_to_many_matches_of_images_of_unequal_sizes(
    bundles: Callable[[str], Path], photographs: Photographs, capfd: Any, tmp_path: Path
) -> None:
    pair = (photographs.first, photographs.tall)
    result, found, _ = matched(capfd, tmp_path, bundles("matchanything-eloftr"), *pair)
    assert (result["size0"], result["size1"]) == ([HEIGHT, WIDTH], [HEIGHT, 128])
    rows = {tuple(p) for p in np.floor(found["keypoints0"]).tolist()}
    assert 20 < len(rows) < result["matches"], "some cells of image 0 have several partners"
    assert result["matches"] > 40


def test_every_row_comes_back_where_slots_are_none(
    bundles: Callable[[str], Path], photographs: Photographs, capfd: Any, tmp_path: Path, published: Any, plain: Any
) -> None:
    bundle = bundles("eloftr:opt")
    result, found, _ = matched(capfd, tmp_path, bundle, photographs.first, photographs.second, "--threshold", "10")
    manifest = json.loads((bundle / FILE_NAME).read_text("utf-8"))
    scores = next(o for o in manifest["networks"][0]["outputs"] if o["name"] == "scores")
    assert scores["shape"] == ["pairs", HEIGHT * WIDTH // 64]
    expected = plain(published).match(*photographs.arrays, 10.0, raw=True)
    assert result["matches"] == len(expected.cells) > 40
    assert np.abs(np.sort(found["scores"]) - np.sort(expected.scores)).max() < 1e-2
    assert result["notes"] == []


def test_a_batch_of_pairs_gives_what_single_pairs_give(
    bundles: Callable[[str], Path], photographs: Photographs
) -> None:
    pairs = [
        (photographs.first, photographs.second),
        (photographs.second, photographs.first),
        (photographs.first, photographs.first),
    ]
    with load(bundles("eloftr"), settings={"threshold": 0.05}) as matcher:
        single = [matcher(*p) for p in pairs]
        together = list(matcher.match_many(pairs, batch_size=3))
    for one, other in zip(single, together, strict=True):
        assert len(one) == len(other) > 10
        assert np.abs(one.keypoints0 - other.keypoints0).max() == 0.0
        assert np.abs(one.keypoints1 - other.keypoints1).max() < 1e-3
        assert np.abs(one.scores - other.scores).max() < 1e-3
    assert not np.array_equal(single[0].keypoints0, single[1].keypoints0), "entries could be swapped unseen"


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line, expect `code`, and return stderr: a line that begins with "matchrt: " and at most a hint."""

    def check(code: int, *argv: object) -> str:
        capfd.readouterr()
        assert run([str(a) for a in argv]) == code
        out, err = capfd.readouterr()
        assert out == ""
        lines = err.strip().splitlines()
        assert len(lines) <= 2, err
        assert lines[0].startswith("matchrt: ")
        assert "Traceback" not in err
        return err

    return check


ORIGINAL_LOFTR = (
    "matcher.backbone.conv1.weight",
    "matcher.loftr_coarse.layers.0.q_proj.weight",
    "matcher.fine_preprocess.down_proj.weight",
    "matcher.loftr_fine.layers.0.q_proj.weight",
)
LIGHTGLUE = ("self_attn.0.Wqkv.weight", "self_attn.0.out_proj.weight", "cross_attn.0.to_qk.weight", "posenc.Wr.weight")


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [("outdoor_ds.ckpt", ORIGINAL_LOFTR, "the original LoFTR"), ("superpoint_lightglue.pth", LIGHTGLUE, "LightGlue")],
)
def test_checkpoints_of_other_networks_are_named(
    fails: Callable[..., str], tmp_path: Path, name: str, keys: tuple[str, ...], words: str
) -> None:
    path = tmp_path / name
    torch.save({"state_dict": {k: torch.zeros(2, 2) for k in keys}}, path)
    message = fails(1, "convert", "eloftr", "--weights", path, "-o", tmp_path / "bundle", "--size", SIZE)
    assert str(path) in message
    assert f"holds {words}" in message
    assert "eloftr_outdoor.ckpt" in message
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_lacking_and_a_stray_key_stop_the_conversion(
    checkpoints: dict[str, Path], tmp_path: Path, capfd: Any
) -> None:
    state = torch.load(checkpoints["eloftr:opt"])
    state.pop("backbone.layer0.rbr_reparam.bias")
    state["surplus"] = torch.zeros(1)
    path = tmp_path / "cut.pth"
    torch.save(state, path)
    assert run(["convert", "eloftr", "--weights", str(path), "-o", str(tmp_path / "b"), "--size", SIZE]) == 1
    err = capfd.readouterr().err
    assert "backbone.layer0.rbr_reparam.bias" in err
    assert "surplus" in err
    assert [p.name for p in tmp_path.iterdir()] == ["cut.pth"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--size", "100x160"), "100x160 (flag) is not a multiple of 32"),
        (("--size", "16x160"), "out of range"),
        (("--set", "slots=4096"), "1 to 3840"),
        (("--set", "dynamic=true", "--size", "128x160"), "takes 416 to 1664 a side"),
        (("--set", "dynamic=true", "--size", "832x832", "--set", "slots=none"), "the number of slots is fixed"),
        (("--set", "recipe=squeeze"), "long-side, stretch"),
    ],
)
def test_settings_that_cannot_be_have_code_2(
    fails: Callable[..., str], tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    assert words in fails(2, "convert", "eloftr", "--random-weights", 0, "-o", tmp_path / "bundle", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_what_a_bundle_cannot_do_is_refused(
    fails: Callable[..., str], bundles: Callable[[str], Path], photographs: Photographs, tmp_path: Path
) -> None:
    pair = (photographs.first, photographs.second)
    bundle = bundles("matchanything-eloftr")
    output = ("--save", tmp_path / "m.npz", "--draw", tmp_path / "m.png")
    assert "below 0.001, the score floor" in fails(2, "match", bundle, *pair, "--threshold", "0.0001", *output)
    assert "takes 128x160 only" in fails(2, "match", bundle, *pair, "--set", "input_size=416x416", *output)
    tiny = tmp_path / "tiny.png"
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(tiny)
    message = fails(1, "match", bundle, tiny, photographs.second, *output)
    assert "20x24" in message
    assert "below 32 pixels" in message
    narrow = tmp_path / "narrow.png"
    Image.fromarray(np.zeros((20, 600), np.uint8)).save(narrow)
    assert "below 32 pixels" in fails(1, "match", bundle, photographs.first, narrow, *output)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["narrow.png", "tiny.png"]
