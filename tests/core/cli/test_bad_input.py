"""Bad input ends in one clear line, the documented exit code, and nothing left behind."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from matchrt.cli import run
from matchrt.samples import sample_pairs

SMALL = ["--set", "long_side=96"]
Outcome = tuple[int, str]


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line, expect `code`, and return stderr: a first line that begins with "matchrt: " and at most a hint."""

    def check(code: int, *argv: object) -> str:
        assert run([str(a) for a in argv]) == code
        out, err = capfd.readouterr()
        assert out == ""
        lines = err.strip().splitlines()
        assert lines[0].startswith("matchrt: "), err
        assert "Traceback" not in err
        return err

    return check


@pytest.fixture
def photograph() -> Path:
    return sample_pairs()[0].image0


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


def test_missing_images_and_bundles(
    fails: Callable[..., str], mini_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    assert "absent.jpg" in fails(1, "match", mini_bundle, tmp_path / "absent.jpg", photograph)
    assert "no bundle at" in fails(1, "match", tmp_path / "nothing", photograph, photograph)
    assert "absent.pth" in fails(1, "inspect", tmp_path / "absent.pth")


def test_a_text_named_jpg(fails: Callable[..., str], mini_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("this is no picture\n" * 40)
    message = fails(
        1, "match", mini_bundle, path, photograph, "--draw", tmp_path / "o.png", "--save", tmp_path / "o.npz"
    )
    assert str(path) in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg"]


def test_a_header_that_claims_a_huge_image(
    fails: Callable[..., str], mini_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    path = tmp_path / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b""))
    assert "60000" in fails(1, "match", mini_bundle, path, photograph)


@pytest.mark.parametrize("kind", ["one-pixel", "16-bit", "cmyk", "rgba", "grey"])
def test_odd_images_that_are_pictures_all_the_same(
    capfd: pytest.CaptureFixture[str], mini_bundle: Path, photograph: Path, tmp_path: Path, kind: str
) -> None:
    rgb = np.asarray(Image.open(photograph).convert("RGB"))
    path = {
        "one-pixel": lambda: save(tmp_path / "a.png", rgb[:1, :1]),
        "16-bit": lambda: save(tmp_path / "a.png", rgb[..., 0].astype(np.uint16) * 257),
        "cmyk": lambda: save(tmp_path / "a.jpg", rgb, "CMYK"),
        "rgba": lambda: save(tmp_path / "a.png", rgb, "RGBA"),
        "grey": lambda: save(tmp_path / "a.png", rgb[..., 0]),
    }[kind]()
    assert run(["match", str(mini_bundle), str(path), str(photograph), *SMALL, "--homography", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["size0"] == ([1, 1] if kind == "one-pixel" else list(rgb.shape[:2]))


def test_usage_errors_have_code_2(
    fails: Callable[..., str], mini_bundle: Path, photograph: Path, tmp_path: Path
) -> None:
    pair = (photograph, photograph)
    assert "did you mean 'superpoint-lightglue'?" in fails(2, "convert", "superpoint-lightgleu", "-o", tmp_path / "b")
    assert "it has: full, mini" in fails(2, "convert", "superpoint-lightglue:tiny", "-o", tmp_path / "b")
    assert "out of range" in fails(2, "match", mini_bundle, *pair, "--threshold", "7")
    assert "threshold" in fails(2, "match", mini_bundle, *pair, "--set", "treshold=0.2")
    assert "baked into this bundle" in fails(2, "match", mini_bundle, *pair, "--set", "keypoints=9")
    assert "--set takes NAME=VALUE" in fails(2, "match", mini_bundle, *pair, "--set", "threshold")
    assert ".npz" in fails(2, "match", mini_bundle, *pair, "--save", tmp_path / "o.xyz")
    assert ".png" in fails(2, "match", mini_bundle, *pair, "--draw", tmp_path / "o.gif")
    assert "no backend is called 'tensorflow'" in fails(2, "match", mini_bundle, *pair, "--backend", "tensorflow")
    assert "unknown setting 'no_such_option'" in fails(2, "match", mini_bundle, *pair, "--no-such-option")
    assert "only a dense matcher" in fails(2, "match", mini_bundle, *pair, "--draw-warp", tmp_path / "w.png")
    random = ("convert", "superpoint-lightglue", "--random-weights", 0, "-o")
    assert "3840" in fails(2, *random, tmp_path / "b", "--keypoints", 4096)
    assert "multiple of 8" in fails(2, *random, tmp_path / "b", "--size", "481x640")
    assert "opset 13 is not supported" in fails(2, *random, tmp_path / "b", "--opset", 13)
    assert "exists already" in fails(2, *random, mini_bundle)
    assert "exclude each other" in fails(2, *random, tmp_path / "b", "--weights", photograph)
    assert "takes no --weights-decoder" in fails(
        2,
        "convert",
        "superpoint-lightglue",
        "--weights",
        photograph,
        "--weights-decoder",
        photograph,
        "-o",
        tmp_path / "b",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_lacking_provider_has_code_4(fails: Callable[..., str], mini_bundle: Path, photograph: Path) -> None:
    assert "carries no" in fails(4, "match", mini_bundle, photograph, photograph, "--provider", "cuda")


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_would_run_code(fails: Callable[..., str], tmp_path: Path) -> None:
    import torch

    marker, output = tmp_path / "ran", tmp_path / "bundle"
    new, old = tmp_path / "new.pth", tmp_path / "old.pth"
    torch.save({"conv1a.weight": torch.zeros(1), "payload": _Payload(marker)}, new)
    old.write_bytes(pickle.dumps(_Payload(marker)))
    for path in (new, old):
        for argv in (("convert", "superpoint-lightglue", "--weights", path, "-o", output), ("inspect", path)):
            assert "mkdir" in fails(1, *argv)
    assert not marker.exists()
    assert not output.exists()
    pickle.loads(pickle.dumps(_Payload(marker)))
    assert marker.exists(), "the payload would not have done anything, so this test proved nothing"


def test_weights_that_are_not_there_or_not_weights(fails: Callable[..., str], tmp_path: Path) -> None:
    page = tmp_path / "weights.pth"
    page.write_text("<!DOCTYPE html><html><body>Not Found</body></html>")
    convert = ("convert", "superpoint-lightglue", "-o", tmp_path / "b", "--weights")
    assert "does not exist" in fails(1, *convert, tmp_path / "absent.pth")
    assert str(page) in fails(1, *convert, page)
    assert "needs weights, and none are at hand" in fails(2, "convert", "superpoint-lightglue", "-o", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_truncated_safetensors(fails: Callable[..., str], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_file({"conv1a.weight": torch.zeros(64, 1, 3, 3)}, str(whole))
    cut.write_bytes(whole.read_bytes()[:-100])
    for argv in (("convert", "superpoint-lightglue", "--weights", cut, "-o", tmp_path / "b"), ("inspect", cut)):
        assert "bytes" in fails(1, *argv)
    assert not (tmp_path / "b").exists()


def test_a_checkpoint_of_another_model_names_the_one_it_fits(fails: Callable[..., str], tmp_path: Path) -> None:
    import torch

    from matchrt.plugins import MatcherHooks, get_plugins
    from matchrt.settings import resolve

    spec = get_plugins().matcher("superpoint-lightglue")
    hooks = MatcherHooks(get_plugins(), spec)
    small = hooks.build_network(spec.variant("mini"), resolve(spec.settings))
    path = tmp_path / "mini.pth"
    torch.save(small.state_dict(), path)
    message = fails(1, "convert", "superpoint-lightglue:full", "--weights", path, "-o", tmp_path / "b")
    assert "misshapen" in message
    assert "fits superpoint-lightglue (mini) better: 100.0%" in message
    torch.save({"layer.weight": torch.zeros(3)}, path)
    message = fails(1, "convert", "superpoint-lightglue:full", "--weights", path, "-o", tmp_path / "b")
    assert "unexpected in the file:\n    layer.weight" in message
    assert not (tmp_path / "b").exists()


def test_a_spoilt_bundle(fails: Callable[..., str], mini_bundle: Path, photograph: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(mini_bundle, tmp_path / "bundle"))
    data = bytearray((bundle / "extractor.onnx").read_bytes())
    data[1000] ^= 255
    (bundle / "extractor.onnx").write_bytes(data)
    assert "changed after conversion" in fails(1, "match", bundle, photograph, photograph)
    assert "changed after conversion" in fails(1, "inspect", bundle)
    manifest = json.loads((mini_bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "schema_version": 7}))
    assert "schema version 7" in fails(1, "match", bundle, photograph, photograph)


@pytest.fixture
def made_before(fixed_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The arguments of a conversion whose exported graphs are those of `fixed_bundle`: the same network, settings and seed."""
    import onnx

    import matchrt.export.convert as room

    graphs = {n: onnx.load(fixed_bundle / f"{n}.onnx") for n in ("extractor", "matcher")}
    monkeypatch.setattr(room, "export_network", lambda network, spec, *_: copy.deepcopy(graphs[spec.name]))
    same = ("--size", "96x128", "--keypoints", 64)
    return ["convert", "superpoint-lightglue:mini", "--random-weights", 0, *same, "-o"]


def test_a_full_disk_leaves_nothing(
    fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_before: list[object]
) -> None:
    import matchrt.export.convert as room

    def full(model: object, path: Path) -> None:
        path.write_bytes(b"half of a graph")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(room, "save_model", full)
    assert "No space left on device" in fails(1, *made_before, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_differs_leaves_nothing(
    fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_before: list[object]
) -> None:
    import onnx

    import matchrt.export.convert as room

    export = room.export_network

    def spoilt(*arguments: object) -> onnx.ModelProto:
        model = export(*arguments)  # type: ignore[arg-type]
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "LayerNormalization" and attribute.name == "epsilon":
                    attribute.f = 0.1
        return model

    monkeypatch.setattr(room, "export_network", spoilt)
    message = fails(3, *made_before, tmp_path / "b")
    assert "matcher.scores0" in message
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(room, "export_network", export)
    assert run([str(a) for a in (*made_before, tmp_path / "b")]) == 0, "unspoilt, the same graphs pass"


def test_json_errors_are_json_too(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["inspect", str(tmp_path / "absent"), "--json"]) == 1
    data = json.loads(capfd.readouterr().out)
    assert data["exit_code"] == 1
    assert "absent" in data["error"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ there")
def test_ctrl_c_during_convert_leaves_nothing(tmp_path: Path) -> None:
    arguments = ["convert", "superpoint-lightglue", "--random-weights", "0", "-o", str(tmp_path / "bundle")]
    process = subprocess.Popen(
        [sys.executable, "-m", "matchrt", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would the child of tests that run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert any(tmp_path.iterdir()), "conversion never began to write"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1] == "matchrt: stopped"
    assert list(tmp_path.iterdir()) == []
