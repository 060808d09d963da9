"""Every table in the documents is what its receipt gives, and no figure stands there without a receipt."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def load_tool() -> Any:
    spec = importlib.util.spec_from_file_location("write_benchmarks", ROOT / "tools/write_benchmarks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()
RECEIPT = {"runs": [], "seconds": {"total": 442.95}, "mib": {"a": 1000, "b": 700}, "list": [1, 2.5]}


@pytest.mark.parametrize("page", tool.pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_tables_and_figures_are_those_of_the_receipts(page: Path) -> None:
    text = page.read_text("utf-8")
    assert tool.regenerate(text, page) == text, "run `uv run python tools/write_benchmarks.py`"
    assert list(tool.problems(text)) == []


@pytest.fixture
def receipts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "r.json").write_text(json.dumps(RECEIPT))
    monkeypatch.setattr(tool, "RECEIPTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It takes 443 s.", ["443 s: no receipt"]),
        ("It is 2.1× faster, 12 ms, 99.2 %.", ["12 ms: no receipt", "2.1 ×: no receipt", "99.2 %: no receipt"]),
        ("Runs of 80 and 46 s.", ["46 s: no receipt", "80 s: no receipt"]),
        ("Sizes 480x640, version 8.6, 3 x 3, 12 pairs, `20 GB`.", []),
        ("```sh\nsleep 3 s\n```\n\n    indented 5 ms", []),
        ('It takes 443 s.\n<!-- figures r.json: 443 s = r["seconds"]["total"] -->', []),
        ('It takes 442 s.\n<!-- figures r.json: 442 s = r["seconds"]["total"] -->', ["442 s: r.json says 442.95"]),
        ('It takes 443.1 s.\n<!-- figures r.json: 443.1 s = r["seconds"]["total"] -->', ["443.1 s: r.json says"]),
        ('1.7 GiB\n<!-- figures r.json:\n1.7 GiB = sum(values(r["mib"])) / 1024 -->', []),
        ("At most 2 GB.\n<!-- figures: 2 GB = fact: protobuf's limit -->", []),
        ("At most 2 GB.\n<!-- figures: 2 GB = so I heard -->", ["2 GB: neither a receipt"]),
        ('Nothing.\n<!-- figures r.json: 443 s = r["seconds"]["total"] -->', ["443 s: noted, but not in"]),
        (
            '443 s here.\n\nHere not.\n<!-- figures r.json: 443 s = r["seconds"]["total"] -->',
            ["443 s: no", "443 s: noted"],
        ),
    ],
)
def test_a_figure_without_its_receipt_is_found(text: str, found: list[str], receipts: Path) -> None:
    problems = list(tool.problems(text))
    assert len(problems) == len(found), problems
    for problem, start in zip(problems, found, strict=True):
        assert problem.startswith(start)


def test_expressions_are_arithmetic_and_nothing_else() -> None:
    assert tool.evaluate('-r["list"][1] * 2 + max(r["list"])', RECEIPT) == -2.5
    for wrong in ("__import__('os')", "r.keys()", "[x for x in r]", "open('/etc/passwd')"):
        with pytest.raises(ValueError, match="cannot evaluate"):
            tool.evaluate(wrong, RECEIPT)


def test_a_table_that_was_touched_is_noticed() -> None:
    page = ROOT / "plugins/lightglue/MODEL_CARD.md"
    text = page.read_text("utf-8")
    for old, new in (("| SIFT | 44.4 %", "| SIFT | 44.5 %"), ("rows=mini|SIFT|ORB|", "rows=mini|SIFT|")):
        assert old in text
        assert tool.regenerate(text.replace(old, new), page) != text.replace(old, new)


def test_a_receipt_of_bench_becomes_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"rounds": 3, "runs": 1, "all": {"median": 0.02, "q25": 0.019, "q75": 0.021, "min": 0.018, "n": 3}}
    common = {
        "bundle": "b",
        "batch": 1,
        "matcher": "m:full",
        "random_weights": True,
        "baked": {},
        "device": {"name": "GPU"},
        "seconds": {"build": 0.0, "load": 1.0, "first_call": 0.1},
        "memory": {
            "host_peak": 2**30,
            "device_peak": 2**31,
            "device_context": 2**29,
            "device_peak_above_context": 3 * 2**29,
        },
    }
    slow = {**times, "all": {**times["all"], "median": 0.16}}
    contenders = [
        {**common, "label": "tensorrt fp16", "peer": "", "times": {"engine": times}},
        {**common, "label": "torch", "peer": "torch", "times": {"engine": slow}},
    ]
    machine = {"cpu": "C", "cores": 2, "gpus": ["GPU"]}
    run = {
        "date": "2026-11-21T00:00:00",
        "machine": machine,
        "command": "c",
        "rounds": "interleaved",
        "contenders": contenders,
    }
    (tmp_path / "b.json").write_text(json.dumps({"schema": 1, "runs": [run]}))
    monkeypatch.setattr(tool, "RECEIPTS", tmp_path)
    text = "<!-- receipt: b.json -->\n<!-- end -->"
    made = tool.regenerate(text, ROOT / "README.md")
    assert "2026-11-21, C, 2 cores, GPU, rounds interleaved: `c`" in made
    assert "| tensorrt fp16 | 20 (19–21) | 8.0× |" in made
    assert "random weights" in made
    assert tool.regenerate(made, ROOT / "README.md") == made


def test_the_tool_checks_from_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/write_benchmarks.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_answers_of_the_gpu_evidence_become_receipts_without_paths(tmp_path: Path) -> None:
    out, to = tmp_path / "out", tmp_path / "receipts"
    out.mkdir()
    to.mkdir()
    for kind in ("eager", "own"):
        (out / f"bench-mini-{kind}.json").write_text(json.dumps({"schema": 1, "runs": [{"kind": kind}]}))
    answer = {"passed": True, "bundle": "/here/mini", "engine": {"interpreter": "/here/python"}, "failures": []}
    (out / "verify-mini-fp16.out").write_text(json.dumps(answer))
    (out / "verify-mini-fp32.out").write_text("")  # one that failed told nothing
    built = {"network": "matcher", "key": "k", "spec": {"gpu": "A GPU"}}
    (out / "build-mini-fp16-matcher.out").write_text(json.dumps({"built": [built]}))
    (out / "runtime-fp16.json").write_text("{}")
    tool = Path(__file__).parents[1] / "tools/gather_evidence.py"
    subprocess.run([sys.executable, str(tool), str(out), "gpu", "--to", str(to)], check=True, capture_output=True)
    made = {p.name: json.loads(p.read_text()) for p in to.iterdir()}
    assert set(made) == {"gpu-mini.json", "gpu-verify.json", "gpu-builds.json", "gpu-runtime-fp16.json"}
    assert [r["kind"] for r in made["gpu-mini.json"]["runs"]] == ["own", "eager"]
    assert set(made["gpu-verify.json"]["results"]) == {"mini-fp16"}
    assert made["gpu-verify.json"]["results"]["mini-fp16"]["passed"] is True
    assert made["gpu-builds.json"]["engines"] == {"mini-fp16": [{"network": "matcher", "key": "k", "gpu": "A GPU"}]}
    assert "/here" not in "".join(p.read_text() for p in to.iterdir())
