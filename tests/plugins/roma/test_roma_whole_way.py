"""From published files to matches as a person types it, on a narrow network: convert, inspect, match, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from roma_files import HIGH, SIZE, SIZES, Cli, Files, deep_config, published_names, write_files
from roma_oracle import tiny_config

import matchrt
import matchrt_roma.build
from matchrt.cli import run


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matchrt_roma.build, "CONFIG", tiny_config(37))


def test_true_names_convert_with_every_tensor_accounted_for(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matchrt_roma.build, "CONFIG", deep_config())
    files = write_files(tmp_path, deep_config())
    checkpoint = torch.load(files.canonical, weights_only=True)["state_dict"]
    dinov2 = torch.load(files.flat, weights_only=True)
    assert set(checkpoint) == published_names("roma_keys")
    assert set(dinov2) == published_names("roma_dinov2_keys")
    weights = ["--weights", files.stacked, "--weights-dinov2", files.chunked]
    out = json.loads(cli("convert", "roma:encoder-gp", *weights, *SIZES, "-o", tmp_path / "bundle", "--json"))
    assert out["weights"] == {
        "loaded": 603,
        "backfilled": 342,
        "dropped": 1,
        "missing": 0,
        "unexpected": 0,
        "misshapen": 0,
    }
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert {s["role"]: s["filename"] for s in manifest["weights"]["sources"]} == {
        "main": "stacked.pth",
        "dinov2": "dinov2_chunked.pth",
    }

    text = " ".join(cli("inspect", files.canonical).split())
    assert "tensors 603" in text
    assert "342 dinov2" in text
    assert "342 of the network's tensors come from a second file, --weights-dinov2 FILE" in text
    assert "342 of 603" in text
    assert "60 of 295" in text
    described = json.loads(cli("inspect", files.canonical, "--json"))
    assert [s["option"] for s in described["second_files"]] == ["--weights-dinov2"]
    assert described["fits"][0]["share"] == 1.0


@pytest.mark.parametrize("upsample", [True, False])
def test_the_command_line_agrees_with_romatch(
    upsample: bool, files: Files, tmp_path: Path, cli: Cli, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images to dense warp through the bundle, against upstream's own `match` on the same files."""
    options = [*SIZES, "--set", f"upsample={upsample}"]
    out = json.loads(cli("convert", "roma", *files.weights, *options, "-o", tmp_path / "bundle", "--json"))
    assert out["check"]["passed"]
    assert ("upsample.warp" in out["check"]["tensors"]) == upsample
    assert ("refine_final.warp" in out["check"]["tensors"]) != upsample
    matches = matchrt.load(tmp_path / "bundle")(*pair)
    assert matches.warp is not None
    ours = np.concatenate(list(matches.warp.warp), axis=1)
    monkeypatch.setattr(files.twins.theirs, "upsample_preds", upsample)
    side = HIGH if upsample else SIZE
    theirs, certainty = files.twins.theirs.match(
        Image.open(pair[0]).convert("RGB"), Image.open(pair[1]).convert("RGB"), device=torch.device("cpu")
    )
    theirs, certainty = theirs.reshape(side, 2 * side, 4), certainty.reshape(side, 2 * side)
    expected = torch.cat((theirs[:, :side, 2:], theirs[:, side:, :2]), dim=1).numpy()
    assert expected.shape == ours.shape == (side, 2 * side, 2)
    tokens = 2 * (SIZE // 14) ** 2  # one anchor may flip; see test_roma_export
    assert float((np.abs(ours - expected).max(axis=-1) > 1e-3).mean()) <= 1 / tokens
    gap = np.abs(np.concatenate(list(matches.warp.certainty), axis=1) - certainty.numpy())
    assert float((gap > 1e-3).mean()) <= 1 / tokens
    assert float(np.abs(ours - np.median(ours)).max()) > 0.5  # the network is not flat


VARIANTS = [
    "matchanything-roma:full",
    "roma:coarse",
    "matchanything-roma:encoder-gp",
    pytest.param("roma:full", marks=pytest.mark.slow),
    pytest.param("matchanything-roma:coarse", marks=pytest.mark.slow),
    pytest.param("roma:encoder-gp", marks=pytest.mark.slow),
]
PARTS = {
    "full": ["coarse", "gp", "pyramid", "refine", "upsample", "vit"],
    "coarse": ["coarse_final", "gp", "pyramid8", "vit"],
    "encoder-gp": ["gp_readout", "vit"],
}
WARPS = {"full": (2, 160, 128, 2), "coarse": (2, 14, 17, 2), "encoder-gp": (2, 8, 10, 2)}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_matches_and_draws(
    name: str, bundles: Callable[[str], Path], tmp_path: Path, cli: Cli, pair: tuple[Path, Path]
) -> None:
    variant = name.partition(":")[2]
    bundle = bundles(name)
    assert sorted(p.stem for p in bundle.glob("*.onnx")) == PARTS[variant]
    pictures = [tmp_path / f"{kind}.png" for kind in ("matches", "warp", "certainty")]
    out = json.loads(
        cli("match", bundle, *pair, "--top-k", 50, "--confidence", 0.2, "--save", tmp_path / "m.json", "--json",
            "--draw", pictures[0], "--draw-warp", pictures[1], "--draw-certainty", pictures[2])
    )  # fmt: skip
    assert out["matches"] == 50
    assert [out[n] for n in ("picture", "warp_picture", "certainty_picture")] == [str(p) for p in pictures]
    with Image.open(pair[0]) as image:
        size0 = image.size
    for picture in pictures[1:]:
        with Image.open(picture) as drawn:
            assert drawn.size[0] == size0[0]
            assert np.asarray(drawn).std() > 10
    saved = json.loads((tmp_path / "m.json").read_text())
    assert min(saved["scores"]) > 0.2
    assert saved["scores"] == sorted(saved["scores"], reverse=True)
    matches = matchrt.load(bundle, settings={"confidence": 0.2, "top_k": 50})(*pair)
    assert matches.warp is not None
    assert matches.warp.warp.shape == WARPS[variant]
    assert np.allclose(matches.keypoints1, saved["keypoints1"])


def test_match_settings_are_options(
    bundles: Callable[[str], Path], tmp_path: Path, cli: Cli, pair: tuple[Path, Path]
) -> None:
    bundle = bundles("roma:coarse")

    def found(*options: object) -> dict[str, np.ndarray]:
        cli("match", bundle, *pair, "--save", tmp_path / "m.json", "--json", "--confidence", 0.05, *options)
        saved = json.loads((tmp_path / "m.json").read_text())
        return {n: np.array(saved[n]) for n in ("keypoints0", "keypoints1", "scores")}

    def rows(m: dict[str, np.ndarray]) -> set[tuple[float, ...]]:
        return {tuple(row) for row in np.hstack((m["keypoints0"], m["keypoints1"])).round(3)}

    everything = found()
    assert len(found("--top-k", 20)["scores"]) == 20
    assert rows(found("--top-k", 20)) < rows(everything)
    assert rows(found("--confidence", 0.5)) == {
        r for r, s in zip(map(tuple, np.hstack((everything["keypoints0"], everything["keypoints1"])).round(3)),
                          everything["scores"], strict=True) if s > 0.5
    }  # fmt: skip
    mutual = found("--mutual", "--mutual-px", 3)
    assert 0 < len(mutual["scores"]) < len(everything["scores"])
    assert rows(mutual) < rows(everything)
    assert rows(found("--sampling", "grid", "--cell", 4)) < rows(everything)
    draws = [found("--sampling", "balanced", "--top-k", 40, "--seed", seed) for seed in (1, 1, 2)]
    assert rows(draws[0]) == rows(draws[1]) != rows(draws[2])
    assert rows(draws[2]) < rows(everything)


def test_one_direction(files: Files, tmp_path: Path, cli: Cli, pair: tuple[Path, Path]) -> None:
    bundle = tmp_path / "bundle"
    cli("convert", "roma:encoder-gp", *files.weights, *SIZES, "--set", "symmetric=false", "-o", bundle)
    matches = matchrt.load(bundle)(*pair)
    assert matches.warp is not None
    assert matches.warp.warp.shape == (1, 8, 8, 2)
    assert run(["match", str(bundle), str(pair[0]), str(pair[1]), "--mutual"]) == 2
