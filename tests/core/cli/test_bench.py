"""`matchrt bench` as a person types it, on the small matcher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from matchrt.cli import run

PEER = """
import numpy
def same(bundle, tensors, device, factor="1"):
    a = numpy.ones((bundle["settings"]["keypoints"] * int(factor),) * 2)
    assert device == "cpu" and tensors["image0"].shape[0] == 1 and tensors["image0"].dtype == numpy.float32
    return lambda: a @ a
def nothing(bundle, tensors, device):
    return None
"""


def test_contenders_race_and_the_receipt_says_it_all(
    mini_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    peers = tmp_path / "peers.py"
    peers.write_text(PEER)
    receipt, picture = tmp_path / "r.json", tmp_path / "p.png"
    words = ["bench", str(mini_bundle), "--against", "torch", "--against", f"{peers}:same:factor=2"]
    words += [
        "--against",
        f"{peers}:nothing",
        "--size",
        "96x128",
        "--rounds",
        "2",
        "--seconds",
        "0.5",
        "--warm-up",
        "0",
        "--threads",
        "1",
    ]
    words += ["--layers", "2", "--stream-pairs", "2", "--save", str(receipt), "--plot", str(picture), "--json"]
    assert run(words) == 1  # one of the peers is broken
    out, err = capfd.readouterr()
    assert "nothing failed: nothing of peers.py must return a callable, got NoneType" in err
    found = json.loads(out)
    ours, torch, peer, broken = found["contenders"]
    assert broken["error"]["message"].startswith("nothing of peers.py")
    assert set(ours["times"]) == {"engine", "host", "stages", "stream"}
    assert set(ours["times"]["engine"]) == {"rounds", "runs", "all", "extractor", "matcher"}
    assert set(peer["times"]) == {"engine"}
    assert ours["inputs"]["image0"] == torch["inputs"]["image0"] == "float32[1, 1, 96, 128]"
    assert "torch" not in ours["versions"]
    assert ours["memory"]["host_peak"] < torch["memory"]["host_peak"]
    assert ours["times"]["engine"]["all"]["n"] == ours["times"]["engine"]["rounds"] * ours["times"]["engine"]["runs"]
    whole = ours["times"]["stages"]["all"]["median"]
    assert whole > ours["times"]["stages"]["run"]["median"] > 0
    (comparison,) = found["comparison"]
    ratio = torch["times"]["engine"]["all"]["median"] / ours["times"]["engine"]["all"]["median"]
    assert comparison["speed_up"] == pytest.approx(ratio)
    assert comparison["best_peer"] == "peers.same:factor=2"
    for network, kernel in (("extractor", "[Conv]"), ("matcher", "[")):
        told = ours["layers"][network]
        assert len(told["slowest"]) == 2 < told["count"]
        assert told["slowest"][0][1] >= told["slowest"][1][1] > 0
        assert kernel in told["slowest"][0][0]
        assert told["seconds"] < 20 * ours["times"]["engine"][network]["median"]
    assert "layers" not in torch
    assert picture.read_bytes()[:4] == b"\x89PNG"
    (stored,) = json.loads(receipt.read_text())["runs"]
    assert stored["contenders"] == found["contenders"]
    assert str(tmp_path) not in receipt.read_text()
    assert stored["command"].startswith("matchrt ")


def test_a_sweep_prints_how_time_grows(mini_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    common = ["--modes", "engine", "--rounds", "2", "--seconds", "0.3", "--warm-up", "0", "--threads", "1"]
    assert run(["bench", str(mini_bundle), "--sweep", "size=64x96,192x256", *common]) == 0
    out = capfd.readouterr().out
    slope = next(line for line in out.splitlines() if line.startswith("time grows as size^"))
    assert 0 < float(slope.removeprefix("time grows as size^").partition(":")[0]) < 2
    assert "64x96" in out
    assert "engine ms" in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--against", "jax"], 2, "no peer is called 'jax'"),
        (["--size", "97x128"], 2, "axis height takes"),
        (["--size", "big"], 2, "a size is HxW"),
        (["--batch", "0"], 2, "numbers from 1"),
        (["--modes", "host"], 2, "engine among them"),
        (["--sweep", "keypoints=64,128"], 2, "give bundles that differ in keypoints"),
        (["--interpreter", "torch=/no/python"], 4, "no interpreter at /no/python"),
        (["--pairs", "/no/pairs.txt"], 2, "cannot read the list of pairs"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(
    mini_bundle: Path, words: list[str], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(mini_bundle), *words]) == code
    assert message in capfd.readouterr().err


def test_a_plot_without_matplotlib_says_what_to_install(
    mini_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else real(name, *a))
    assert run(["bench", str(mini_bundle), "--plot", str(tmp_path / "p.png")]) == 4
    assert "matchrt[plot]" in capfd.readouterr().err
