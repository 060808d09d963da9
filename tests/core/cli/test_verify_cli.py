"""`matchrt verify` as a person types it: figures, exit codes, the report, other references, another Python."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from PIL import Image

from matchrt.bundle import read_bundle
from matchrt.cli import run
from matchrt.samples import sample_pairs
from matchrt.verify.derive import derive_bundle

Call = Callable[..., tuple[int, str, str]]
ON_CPU = ("--reference-option", "device=cpu", "--threads", "1")


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    """Run the command line; exit code, stdout, stderr."""

    def run_here(*argv: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(a) for a in argv])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run_here


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One pair, without a homography, by a path relative to the list."""
    folder = tmp_path_factory.mktemp("list")
    pair = sample_pairs()[0]
    for name, source in (("a.jpg", pair.image0), ("b.jpg", pair.image1)):
        (folder / name).write_bytes(source.read_bytes())
    (folder / "pairs.txt").write_text("a.jpg b.jpg  # one\n", "utf-8")
    return folder / "pairs.txt"


@pytest.fixture(scope="module")
def faulty(mini_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose last projection is 10 % too large."""
    bundle = read_bundle(mini_bundle)
    model = onnx.load(str(bundle.graph("matcher")))
    norm = [n for n in model.graph.node if n.op_type == "LayerNormalization"][-1]
    next(a for a in norm.attribute if a.name == "epsilon").f = 3.0
    return derive_bundle(bundle, tmp_path_factory.mktemp("faulty") / "b", {"matcher": model}).path


def test_a_good_bundle(mini_bundle: Path, call: Call, pairs: Path, tmp_path: Path) -> None:
    report = tmp_path / "out.html"
    code, out, _ = call("verify", mini_bundle, "--pairs", pairs, *ON_CPU, "--report", report)
    assert code == 0
    for words in ("torch fp32", "onnxruntime fp32", "a-b", "100.00%", "matcher.scores0", "passed"):
        assert words in out
    page = report.read_text("utf-8")
    assert "Passed: every figure is within its bound" in page
    assert read_bundle(mini_bundle).sha256 in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 1
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).width > 600


def test_falling_short_is_exit_code_3_and_names_the_place(
    faulty: Path, call: Call, pairs: Path, tmp_path: Path
) -> None:
    report = tmp_path / "out.html"
    code, out, err = call("verify", faulty, "--pairs", pairs, *ON_CPU, "--report", report)
    assert code == 3
    assert "FELL SHORT" in out
    assert "elements beyond the tolerance" in err
    assert "the difference enters network 'matcher' in transformers.4.cross_attn.ffn.1" in err
    page = report.read_text("utf-8")
    assert "Fell short of the reference" in page
    assert "class=jump" in page
    assert page.count("<svg") >= 1


def test_json_is_one_document_also_when_it_falls_short(faulty: Path, call: Call, pairs: Path) -> None:
    code, out, _ = call("verify", faulty, "--pairs", pairs, *ON_CPU, "--json", "--no-locate")
    data = json.loads(out)
    assert code == 3
    assert data["passed"] is False
    assert data["location"] is None
    assert data["total"]["reference"] == data["pairs"][0]["reference"] > 20
    assert set(data["pairs"][0]["coordinates"]) == {"count", "mean", "median", "p95", "p99", "max", "within"}
    assert {d["tensor"] for d in data["pairs"][0]["tensors"]["equal_inputs"]} >= {"descriptors", "scores0"}


def test_another_bundle_as_the_reference(faulty: Path, mini_bundle: Path, call: Call, pairs: Path) -> None:
    code, out, _ = call("verify", faulty, "--against", mini_bundle, "--pairs", pairs, "--threads", "1", "--json")
    data = json.loads(out)
    assert code == 3
    assert data["reference"]["backend"] == "onnxruntime"
    assert data["location"]["culprit"].startswith("transformers.4.cross_attn.ffn.1/")


@pytest.mark.parametrize("backends", [("onnxruntime",), pytest.param(("torch", "onnxruntime"), marks=pytest.mark.slow)])
def test_a_side_in_another_python(faulty: Path, call: Call, pairs: Path, backends: tuple[str, ...]) -> None:
    """Here it is this Python, in a process of its own; the probe of the engine runs there too."""
    others = [f"--interpreter={backend}={sys.executable}" for backend in backends]
    code, out, _ = call("verify", faulty, "--pairs", pairs, *ON_CPU, "--json", *others)
    data = json.loads(out)
    assert code == 3
    assert data["engine"]["interpreter"] == sys.executable
    assert data["reference"].get("interpreter") == (sys.executable if "torch" in backends else None)
    assert data["location"]["place"] == "transformers.4.cross_attn.ffn.1"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--against", "nowhere"], 2, "neither `torch`, nor a bundle's folder, nor a checkpoint"),
        (["--backend", "unheard"], 2, "no backend is called 'unheard'"),
        (["--precision", "fp16", "--backend", "torch", "--emulate"], 2, "prepares no graphs"),
        (["--emulate"], 2, "only fp16 can be emulated"),
        (["--report", "out.pdf"], 2, "the suffix must be .html"),
        (["--interpreter", "torch"], 2, "--interpreter takes BACKEND=PATH"),
        (["--reference-option", "devise=cpu"], 2, "no option 'devise'"),
        (["--pairs", "none.txt"], 2, "cannot read the list of pairs"),
        (["--tolerance", "-1"], 2, "tolerance"),
        (["--keypoints", "9"], 2, "baked into this bundle"),
    ],
)
def test_wrong_requests_are_refused(mini_bundle: Path, call: Call, options: list[str], code: int, message: str) -> None:
    found, _, err = call("verify", mini_bundle, *options)
    assert message in err
    assert found == code


def test_bundles_of_other_settings_cannot_be_compared(mini_bundle: Path, call: Call, tmp_path: Path) -> None:
    other = derive_bundle(read_bundle(mini_bundle), tmp_path / "b", {}).path
    manifest = json.loads((other / "bundle.json").read_text("utf-8"))
    manifest["settings"]["keypoints"] = 64
    (other / "bundle.json").write_text(json.dumps(manifest), "utf-8")
    code, _, err = call("verify", mini_bundle, "--against", other)
    assert code == 2
    assert "different settings: keypoints 128 against 64" in err
