"""The shipped `mini` weights: size, receipt, and matches on the sample pairs."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
TRAINING = ROOT / "plugins/lightglue/training"
WEIGHTS = ROOT / "plugins/lightglue/src/matchrt_lightglue/data/mini"
SAMPLES = ROOT / "core/src/matchrt/samples"
RECEIPT = ROOT / "docs/benchmarks/mini-matching.json"
FLOOR = {"astronaut": 270, "coffee": 220}
"""Inliers within 3 pixels of the true homography: about two thirds of what the first weights found."""


@pytest.fixture(scope="module")
def evaluate() -> Any:
    sys.path.insert(0, str(TRAINING))
    import evaluate as module

    sys.path.remove(str(TRAINING))
    return module


def test_both_files_together_stay_under_six_megabytes() -> None:
    assert sum(p.stat().st_size for p in WEIGHTS.glob("*.safetensors")) < 6e6


def test_receipt_and_table_belong_to_the_committed_weights(evaluate: Any) -> None:
    receipt = json.loads(RECEIPT.read_text())
    assert receipt["weights"] == {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in WEIGHTS.glob("*.safetensors")
    }
    assert RECEIPT.with_suffix(".md").read_text() == evaluate.table(receipt)
    ours, sift, orb = (receipt["results"][m]["all"] for m in ("mini", "SIFT", "ORB"))
    assert ours["pairs"] >= 200
    for figure in ("repeatability", "accuracy_1px", "accuracy_3px", "accuracy_5px", "corners_3px"):
        assert ours[figure] > orb[figure], figure
    assert ours["corners_3px"] > sift["corners_3px"]


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_sample_pairs_match(name: str, evaluate: Any) -> None:
    from_file = next(p for p in json.loads((SAMPLES / "samples.json").read_text())["pairs"] if p["name"] == name)
    images = [cv2.imread(str(SAMPLES / from_file[k]), cv2.IMREAD_GRAYSCALE) for k in ("image0", "image1")]
    config = evaluate.load_config(TRAINING / "config.toml", smoke=False)
    mini = evaluate.Mini(WEIGHTS, config["network"], config["inference"])
    (_, _, m0, m1), _ = mini(*images)
    pair = evaluate.Pair(name, False, 0.0, *images, np.array(from_file["homography"]))
    inliers = int((evaluate.reprojection(m0, m1, pair.homography) <= 3).sum())
    assert inliers >= FLOOR[name]
    assert evaluate.corner_error(m0, m1, pair) < 3.0
