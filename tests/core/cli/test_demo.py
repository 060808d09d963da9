"""The first command: real matches, the known homography, a report. It fails when quality falls."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import matchrt
from matchrt.cli import run
from matchrt.export.convert import ConvertRequest
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


def test_mini_needs_no_file_and_is_converted_once(
    mini_on_the_fly: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first load converted for real (the fixture); from then on a conversion is counted, and its result copied."""
    cache = Path(shutil.copytree(mini_on_the_fly.cache, tmp_path / "cache"))
    for name, value in {**mini_on_the_fly.environment, "MATCHRT_CACHE": str(cache)}.items():
        monkeypatch.setenv(name, value)
    asked: list[ConvertRequest] = []

    def copy(request: ConvertRequest, plugins: object) -> SimpleNamespace:
        asked.append(request)
        shutil.copytree(mini_on_the_fly.bundle, request.output, dirs_exist_ok=request.replace)
        return SimpleNamespace(bundle=request.output)

    monkeypatch.setattr("matchrt.export.convert.run_convert", copy)
    pair = sample_pairs()[1]
    (bundle,) = (cache / "bundles").iterdir()
    first = matchrt.load("superpoint-lightglue:mini")
    matches = first(pair.image0, pair.image1)
    assert asked == []
    assert len(matches) > 30
    assert first.settings["long_side"] == 320
    (bundle / "matcher.onnx").write_bytes(b"spoilt")
    assert len(matchrt.load("superpoint-lightglue:mini")(pair.image0, pair.image1)) == len(matches)
    assert [(r.output, r.replace, r.variant) for r in asked] == [(bundle, True, "mini")]
    monkeypatch.setenv("MATCHRT_SET_KEYPOINTS", "64")
    matchrt.load("superpoint-lightglue:mini").close()
    assert len(asked) == len(list((cache / "bundles").iterdir())) == 2, "another setting is another bundle"
    assert not asked[1].replace


def test_demo_leaves_other_folders_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert run(["demo", "-o", str(tmp_path)]) == 2
    assert "is not an earlier demo" in capfd.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
