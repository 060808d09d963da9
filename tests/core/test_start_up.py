"""Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "cv2", "tensorrt", "tensorrt_rtx")
REPORT = f"import json, sys; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.__stderr__)"


def loaded_by(code: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{REPORT}"], capture_output=True, text=True, check=True, env=os.environ
    )
    heavy: list[str] = json.loads(result.stderr.splitlines()[-1])
    return heavy


def test_the_report_sees_a_heavy_import() -> None:
    assert loaded_by("import cv2") == ["cv2"]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["models"], ["models", "--json"], ["plugins"], ["plugins", "--json"]]
)
def test_listing_verbs_load_nothing_heavy(arguments: list[str]) -> None:
    assert loaded_by(f"from matchrt.cli import run; assert run({arguments!r}) == 0") == []


@pytest.mark.parametrize("verb", ["models", "fetch", "convert", "match", "bench", "inspect", "plugins", "doctor"])
def test_help_of_a_verb_loads_nothing_heavy(verb: str) -> None:
    assert loaded_by(f"from matchrt.cli import run; run([{verb!r}, '--help'])") == []


def test_doctor_itself_loads_nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it tries is in other processes."""
    code = "import matchrt.doctor.examine as e; e.attempt = lambda *a: e.Trial(); e.attempt_imports = lambda m: {}"
    assert loaded_by(f"{code}; from matchrt.cli import run; assert run(['doctor']) == 0") == []


def test_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import matchrt, matchrt.hooks, matchrt.model; matchrt.__version__") == []


@pytest.mark.parametrize("module", sorted({e.value for e in entry_points(group="matchrt")}))
def test_entry_modules_load_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import importlib; importlib.import_module({module!r})") == []


def test_matching_loads_no_torch(mini_bundle: object) -> None:
    code = f"""
import numpy, matchrt
matcher = matchrt.load({str(mini_bundle)!r})
image = numpy.random.default_rng(0).integers(0, 255, (64, 80), dtype=numpy.uint8)
matcher(image, image).homography()
"""
    assert set(loaded_by(code)) == {"onnxruntime", "cv2"}
