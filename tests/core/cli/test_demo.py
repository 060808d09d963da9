"""The first command: real matches, the known homography, a report. It fails when quality falls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import matchrt
from matchrt.cli import run
from matchrt.samples import sample_pairs

FLOOR = {"astronaut": 270, "coffee": 220}
"""Inliers; about two thirds of what the shipped weights find."""


def test_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    assert run(["demo", "-o", str(output), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["convert"]["check"]["passed"]
    assert result["convert"]["random_weights"] is False
    counts = result["convert"]["weights"]
    assert counts["loaded"] + counts["backfilled"] > 100
    assert counts["missing"] == counts["unexpected"] == counts["misshapen"] == 0
    assert {p["pair"] for p in result["pairs"]} == {p.name for p in sample_pairs()} == set(FLOOR)
    for pair in result["pairs"]:
        assert pair["inliers"] >= FLOOR[pair["pair"]]
        assert pair["corner_px"] < 3
        picture = np.asarray(Image.open(pair["picture"]))
        assert picture.shape[1] > 800
    report = (output / "report.html").read_text("utf-8")
    assert report.count("data:image/png;base64,") == len(FLOOR)
    for word in ("corner error", "known homography", "matcher.scores0", "Every tensor is accounted for"):
        assert word in report
    assert "http" not in report.replace("http-equiv", "")


def test_mini_needs_no_file_and_is_converted_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MATCHRT_CACHE", str(tmp_path))
    pair = sample_pairs()[1]
    first = matchrt.load("superpoint-lightglue:mini")
    bundles = list((tmp_path / "bundles").iterdir())
    assert len(bundles) == 1
    made = (bundles[0] / "bundle.json").stat().st_mtime_ns
    matches = matchrt.load("superpoint-lightglue:mini")(pair.image0, pair.image1)
    assert (bundles[0] / "bundle.json").stat().st_mtime_ns == made
    assert len(matches) > FLOOR["coffee"]
    assert first.settings["long_side"] == 960
    (bundles[0] / "matcher.onnx").write_bytes(b"spoilt")
    assert len(matchrt.load("superpoint-lightglue:mini")(pair.image0, pair.image1)) == len(matches)


def test_demo_leaves_other_folders_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert run(["demo", "-o", str(tmp_path)]) == 2
    assert "is not an earlier demo" in capfd.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
