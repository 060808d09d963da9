"""What the documents say is there, and what they tell people to type works."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from matchrt.cli import VERBS, run
from matchrt.plugins import get_plugins

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("plugins/*/*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_promises_name_tests_that_exist() -> None:
    named = re.findall(r"`(tests/[^`]+)`", (ROOT / "docs/promises.md").read_text("utf-8"))
    assert len(named) > 10
    for path in named:
        assert (ROOT / path).is_file(), path


def test_every_slow_test_has_run(request: pytest.FixtureRequest) -> None:
    """The newest receipt of `tools/slow_receipt.py` holds the slow tests that this run leaves out, and each passed."""
    newest = sorted((ROOT / "docs/benchmarks").glob("slow-tests-*.json"))[-1]
    receipt = json.loads(newest.read_text("utf-8"))
    assert receipt["not_run"] == []
    assert {entry["outcome"] for entry in receipt["tests"].values()} == {"passed"}
    left_out = request.getfixturevalue("slow_tests_left_out")
    lacking = sorted(set(left_out) - set(receipt["tests"]))
    assert lacking == [], (
        f"run `uv run python tools/slow_receipt.py {' '.join(sorted({n.split('::')[0] for n in lacking}))}`"
    )


def test_the_readme_names_every_matcher_and_variant() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for matcher in get_plugins().matchers.values():
        row = next((line for line in text.splitlines() if line.startswith("| `") and f"`{matcher.id}`" in line), "")
        assert row, f"README lacks {matcher.id}"
        for variant in matcher.variants:
            assert f"`{variant.name}`" in row


def test_the_readme_names_no_verb_that_is_not_there() -> None:
    for page in PAGES:
        for verb in re.findall(r"`?matchrt ([a-z][a-z-]+)", page.read_text("utf-8")):
            if verb in ("matchrt",) or page.name == "CHANGELOG.md":
                continue
            assert verb in VERBS or verb in _PROSE, f"{page.name}: matchrt {verb}"


_PROSE = {"has", "can", "is", "reads", "refuses"}


def commands_of(page: Path) -> list[str]:
    """Lines of the page's `sh` blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), flags=re.S)
    return [line for block in blocks for line in block.strip().splitlines()]


def test_the_readme_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the installation and the test run itself, on checkpoints in the true format and shipped photographs.

    In this process, and with fewer keypoints and smaller images than by default: the words typed are those of the page.
    """
    import torch

    from matchrt.plugins import MatcherHooks
    from matchrt.samples import sample_pairs
    from matchrt.settings import resolve

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MATCHRT_SET_LONG_SIDE", "320")
    spec = get_plugins().matcher("superpoint-lightglue")
    torch.manual_seed(0)
    network = MatcherHooks(get_plugins(), spec).build_network(spec.variant("full"), resolve(spec.settings))
    state = network.state_dict()
    for part, name in (("matcher.", "superpoint_lightglue.pth"), ("extractor.", "superpoint_v1.pth")):
        torch.save({k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}, tmp_path / name)
    pair = sample_pairs()[0]
    shutil.copy(pair.image0, tmp_path / "a.jpg")
    shutil.copy(pair.image1, tmp_path / "b.jpg")
    ran = 0
    for line in commands_of(ROOT / "README.md"):
        words = shlex.split(line)
        if words[:3] != ["uv", "run", "matchrt"]:
            assert line in ("python3 -m pip install uv", "uv run pytest -n 2 --dist loadfile")
            continue
        if words[3] == "demo":
            assert line == "uv run matchrt demo -o demo"  # run by tests/core/cli/test_demo.py
            continue
        if words[3] == "doctor":
            continue  # run by tests/core/doctor/test_doctor.py
        with monkeypatch.context() as patch:
            if words[3] == "convert":
                patch.setenv("MATCHRT_SET_KEYPOINTS", "128")
            assert run(words[3:]) == 0, line
        ran += 1
    assert ran == 3
    assert (tmp_path / "matches.png").is_file()
    assert (tmp_path / "matches.npz").is_file()
