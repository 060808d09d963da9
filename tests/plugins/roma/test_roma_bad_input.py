"""Wrong files and settings of RoMa end in one clear line, the documented exit code, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from roma_files import SIZES, Files
from roma_oracle import tiny_config

import matchrt.export.onnx_export
import matchrt_roma.build
from matchrt.cli import run
from matchrt.samples import sample_pairs

Fails = Callable[..., list[str]]
ELOFTR_KEYS = Path(__file__).parents[1] / "eloftr" / "data" / "keys.json"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matchrt_roma.build, "CONFIG", tiny_config(37))


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Fails:
    """Run the command line, expect `code`, and return stderr: one line for the fault, one for the remedy."""

    def check(code: int, *argv: object) -> list[str]:
        capfd.readouterr()
        assert run([str(a) for a in argv]) == code
        out, err = capfd.readouterr()
        lines = [str(line) for line in err.strip().splitlines()]
        assert out == ""
        assert len(lines) == 2, err
        assert lines[0].startswith("matchrt: ")
        return lines

    return check


@pytest.fixture
def refused(fails: Fails, tmp_path: Path) -> Fails:
    """`convert` of files that do not do; nothing may appear where the bundle would be."""

    def check(code: int, *argv: object) -> list[str]:
        folder = tmp_path / "out"
        folder.mkdir()
        lines = fails(code, "convert", "roma", *argv, "-o", folder / "bundle")
        assert list(folder.iterdir()) == []
        return lines

    return check


def test_no_dinov2_at_hand(files: Files, refused: Fails) -> None:
    fault, remedy = refused(1, "--weights", files.canonical, *SIZES)
    assert "holds no dinov2 (34 tensors)" in fault
    assert "--weights-dinov2 FILE (dinov2_vitl14_pretrain.pth)" in remedy
    assert "--weights-dinov2 timm (downloads vit_large_patch14_dinov2.lvd142m)" in remedy
    assert "matchrt fetch roma:full" in remedy


def test_a_dinov2_with_register_tokens(files: Files, refused: Fails, tmp_path: Path) -> None:
    state = torch.load(files.flat, weights_only=True)
    torch.save({**state, "register_tokens": torch.zeros(1, 4, 64)}, tmp_path / "reg4.pth")
    fault, remedy = refused(1, "--weights", files.canonical, "--weights-dinov2", tmp_path / "reg4.pth", *SIZES)
    assert "reg4.pth is a DINOv2 with register tokens" in fault
    assert "register_tokens" in fault
    assert "dinov2_vitl14_pretrain.pth" in remedy


def test_a_roma_checkpoint_as_dinov2(files: Files, refused: Fails) -> None:
    fault, _ = refused(1, "--weights", files.canonical, "--weights-dinov2", files.stacked, *SIZES)
    assert "stacked.pth is a RoMa checkpoint, and those hold no DINOv2" in fault


def test_dinov2_as_the_checkpoint(files: Files, refused: Fails) -> None:
    fault, remedy = refused(1, "--weights", files.flat, *SIZES)
    assert "DINOv2" in fault
    assert "--weights-dinov2" in remedy


def test_an_eloftr_checkpoint(refused: Fails, files: Files, tmp_path: Path) -> None:
    keys = next(v for v in json.loads(ELOFTR_KEYS.read_text()).values() if isinstance(v, dict) and len(v) > 100)
    torch.save({"state_dict": {key: torch.zeros(1) for key in keys}}, tmp_path / "eloftr.ckpt")
    fault, remedy = refused(1, "--weights", tmp_path / "eloftr.ckpt", "--weights-dinov2", files.flat, *SIZES)
    assert "EfficientLoFTR, which is another network than RoMa" in fault
    assert "roma_outdoor.pth" in remedy


@pytest.mark.parametrize(
    ("setting", "divisor", "nearest"),
    [("size=832x832", 14, "826x826"), ("upsample_size=860x860", 8, "864x864"), ("size=560x550", 14, "560x546")],
)
def test_sizes(files: Files, refused: Fails, setting: str, divisor: int, nearest: str) -> None:
    fault, remedy = refused(2, *files.weights, "--set", setting)
    assert f"is not a multiple of {divisor}" in fault
    assert nearest in remedy


def test_upsampling_of_a_variant_that_has_none(files: Files, fails: Fails, tmp_path: Path) -> None:
    words = ("convert", "roma:coarse", *files.weights, *SIZES, "--set", "upsample=true", "-o", tmp_path / "bundle")
    fault, remedy = fails(2, *words)
    assert "variant coarse has no upsampling pass" in fault
    assert "roma:full" in remedy
    assert list(tmp_path.iterdir()) == []


def test_mutual_in_one_direction_and_a_cut_weights_file(
    files: Files, fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matchrt.export.onnx_export, "LARGEST_FILE", 0)
    bundle = tmp_path / "bundle"
    command = ["convert", "roma:encoder-gp", *files.weights, *SIZES, "--set", "symmetric=false", "-o", bundle]
    assert run([str(a) for a in command]) == 0
    assert (bundle / "vit.onnx.data").stat().st_size > 100_000
    pair = (sample_pairs()[0].image0, sample_pairs()[0].image1)
    before = sorted(tmp_path.iterdir())
    fault, remedy = fails(2, "match", bundle, *pair, "--mutual", "--save", tmp_path / "m.npz")
    assert "mutual check needs both directions" in fault
    assert "symmetric=true" in remedy
    shutil.copytree(bundle, tmp_path / "cut")
    with (tmp_path / "cut" / "vit.onnx.data").open("r+b") as file:
        file.truncate(50_000)
    fault, _ = fails(1, "match", tmp_path / "cut", *pair, "--save", tmp_path / "m.npz")
    assert "vit.onnx.data" in fault
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "cut"])
