"""DINOv2 through the timm library: its own loading, from a local file in the published form; and without a network."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from roma_files import HIGH, SIZE, Cli, Files
from roma_oracle import TINY, tiny_config
from safetensors import safe_open
from safetensors.torch import save_file

import matchrt_roma.build
from matchrt.cli import run
from matchrt.errors import DownloadError, EnvironmentLackError, UsageError
from matchrt.plugins import get_plugins
from matchrt.weights.locate import fetched_path, find_weights
from matchrt.weights.timm_source import fetch_with_timm, timm_path

NAME = "vit_large_patch14_dinov2.lvd142m"
ROMA = get_plugins().matcher("roma")
DINOV2 = next(f for f in ROMA.default_variant.weights if f.role == "dinov2")
NARROW = {"embed_dim": TINY["vit_dim"], "depth": TINY["vit_depth"], "num_heads": TINY["vit_heads"]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATCHRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(matchrt_roma.build, "CONFIG", tiny_config(37))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """timm makes its own model, only narrower; the calls that were made."""
    calls: list[dict[str, Any]] = []
    create = timm.create_model

    def call(name: str, **options: Any) -> torch.nn.Module:
        calls.append({"name": name, **options})
        return create(name, **options, **NARROW)

    monkeypatch.setattr(timm, "create_model", call)
    return calls


@pytest.fixture
def published(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, narrow: list[Any]) -> Path:
    """timm's loader reads this file, as its hub repository holds it, instead of the hub."""
    state = torch.load(files.flat, weights_only=True)
    del state["mask_token"]
    place = tmp_path / "hub" / "model.safetensors"
    place.parent.mkdir()
    save_file({n: t.contiguous() for n, t in state.items()}, str(place))
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, **o: create(name, **o, pretrained_cfg_overlay={"file": str(place)})
    )
    return place


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(str(path), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping


def test_the_word_timm_gives_the_bundle_of_the_official_file(
    files: Files, published: Path, narrow: list[Any], tmp_path: Path, cli: Cli, bundles: Callable[[str], Path]
) -> None:
    sizes = ["--set", "size=112x140", "--set", "upsample_size=160x128", "--set", "pairs=3"]
    words = ("convert", "matchanything-roma:encoder-gp", "--weights", files.canonical, *sizes)
    cli(*words, "--weights-dinov2", "timm", "-o", tmp_path / "bundle", "--json")
    assert [(c["name"], c["pretrained"]) for c in narrow] == [(NAME, True)]
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    official = json.loads((bundles("matchanything-roma:encoder-gp") / "bundle.json").read_text())
    graphs = [{n: f["sha256"] for n, f in m["files"].items()} for m in (manifest, official)]
    assert graphs[0] == graphs[1]
    assert set(graphs[0]) == {"vit.onnx", "gp_readout.onnx"}
    copy = timm_path(get_plugins().matcher("matchanything-roma"), DINOV2)
    source = next(s for s in manifest["weights"]["sources"] if s["role"] == "dinov2")
    assert source["filename"] == copy.name == f"{NAME}.safetensors"
    assert source["sha256"] == hashlib.sha256(copy.read_bytes()).hexdigest()
    assert manifest["weights"]["report"]["counts"]["missing"] == 0
    assert manifest["weights"]["report"]["counts"]["backfilled"] == len(tensors(published))


def test_fetch_via_timm(files: Files, published: Path, narrow: list[Any], cli: Cli) -> None:
    main = fetched_path(ROMA, ROMA.default_variant.weights[0])
    main.parent.mkdir(parents=True)
    shutil.copy(files.canonical, main)
    with pytest.raises(AssertionError, match="network"):
        cli("fetch", "roma", "--offline")
    first, again = (json.loads(cli("fetch", "roma", "--via", "timm", "--json"))["files"] for _ in range(2))
    assert [(f["role"], f["via"]) for f in first] == [("main", "url"), ("dinov2", "timm")]
    assert [f["held_to"] for f in (first[1], again[1])] == ["first", "recorded"]
    assert [f["downloaded"] for f in (first[1], again[1])] == [True, False]
    assert len(narrow) == 1
    found = find_weights(ROMA, ROMA.default_variant, {})
    assert found == {"": main, "dinov2": timm_path(ROMA, DINOV2)}
    kept, sent = tensors(found["dinov2"]), tensors(published)
    assert kept.keys() == sent.keys()
    assert all(torch.equal(kept[n], sent[n]) for n in sent)
    record = json.loads(found["dinov2"].with_name(f"{NAME}.safetensors.fetch.json").read_text())
    assert record["url"] == f"timm:{NAME}"
    assert record["sha256"] == first[1]["sha256"] == hashlib.sha256(found["dinov2"].read_bytes()).hexdigest()


def test_a_copy_that_changed_is_refused(published: Path) -> None:
    place = fetch_with_timm(ROMA, DINOV2).path
    place.write_bytes(place.read_bytes()[:-4] + b"else")
    with pytest.raises(DownloadError, match="is not what was recorded"):
        find_weights(ROMA, ROMA.default_variant, {"": published, "dinov2": Path("timm")})


def test_a_file_that_lacks_tensors_leaves_nothing(published: Path) -> None:
    """timm fills its model strictly: nothing stays as it was initialised."""
    state = tensors(published)
    del state["blocks.1.mlp.fc2.weight"]
    save_file(state, str(published))
    with pytest.raises(DownloadError, match=r"could not get it: .*state_dict"):
        fetch_with_timm(ROMA, DINOV2)
    assert [p.name for p in timm_path(ROMA, DINOV2).parent.iterdir() if not p.name.endswith(".lock")] == []


def test_without_a_network_the_error_names_the_file(
    files: Files, narrow: list[Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's own way to the hub, with the hub's own switch off, which only spares the retries; and its failure."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    logging.getLogger("timm").setLevel(logging.ERROR)
    words = ["convert", "roma:encoder-gp", "--weights", str(files.canonical), "--weights-dinov2", "timm"]
    words += ["--set", f"size={SIZE}x{SIZE}", "--set", f"upsample_size={HIGH}x{HIGH}", "-o", str(tmp_path / "out")]
    assert run(words) == 1
    fault, remedy = capfd.readouterr().err.strip().splitlines()[-2:]
    assert f"no {NAME} from timm: timm {timm.__version__} could not get it" in fault
    assert "dinov2_vitl14_pretrain.pth" in remedy
    assert "--weights-dinov2" in remedy
    assert len(narrow) == 1
    monkeypatch.setenv("MATCHRT_OFFLINE", "1")
    with pytest.raises(DownloadError, match="network access is off"):
        fetch_with_timm(ROMA, DINOV2)
    assert len(narrow) == 1  # it was not even asked
    assert not (tmp_path / "out").exists()


def test_without_timm_and_for_what_timm_lacks(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="--weights timm: timm publishes no such file of roma:full"):
        find_weights(ROMA, ROMA.default_variant, {"": Path("timm")})
    assert run(["fetch", "eloftr", "--via", "timm"]) == 2
    assert "timm publishes no weights of eloftr:full" in capfd.readouterr().err
    monkeypatch.chdir(tmp_path)
    shutil.copy(files.flat, "timm")  # a file that is called so is that file
    given = {"": files.canonical, "dinov2": Path("timm")}
    assert find_weights(ROMA, ROMA.default_variant, given) == given
    Path("timm").unlink()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EnvironmentLackError, match="needs timm, which is not installed"):
        find_weights(ROMA, ROMA.default_variant, given)
