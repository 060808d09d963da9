"""`matchrt build` and `matchrt engines` as a person or a program sees them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"MATCHRT_CACHE": str(tmp_path_factory.mktemp("cli_cache"))}


@pytest.fixture(scope="module")
def built(run_cli: Cli, fixed_bundle: Path, cache: dict[str, str]) -> list[dict[str, Any]]:
    """Both networks built once by TensorRT-RTX, as `--json` reported them."""
    done = run_cli(
        "build", fixed_bundle, "--backend", "tensorrt_rtx", "--batch", 1, "--target", "sm89", "--json", env=cache
    )
    assert done.returncode == 0, done.stderr
    answer: list[dict[str, Any]] = json.loads(done.stdout)["built"]
    return answer


@pytest.mark.rtx
def test_a_build_reports_what_it_made(built: list[dict[str, Any]]) -> None:
    assert [(b["network"], b["cached"]) for b in built] == [("extractor", False), ("matcher", False)]
    spec = built[0]["spec"]
    assert (spec["backend"], spec["precision"], spec["targets"]) == ("tensorrt_rtx", "fp32", ["sm89"])
    assert spec["options"]["tf32"] is False
    assert spec["profiles"][0] == {"input": "image", **{n: [1, 1, 96, 128] for n in ("min", "opt", "max")}}


def test_what_a_target_is_known_to_get_wrong_is_said_when_it_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    from matchrt.cli.build import _show_built

    findings = [
        {
            "severity": s,
            "node": "attention over 1601 keys",
            "operator": "",
            "limit": f"wrong, a {s}",
            "remedy": "verify it",
        }
        for s in ("warning", "note")
    ]
    record = {"prepared": {"notes": ["a note"], "findings": findings}, "built": {"messages": []}}
    spec = SimpleNamespace(backend="tensorrt", backend_version="8.6.0", precision="fp32")
    entry = SimpleNamespace(key="0" * 64, size=1, record=record)
    made = SimpleNamespace(plan=SimpleNamespace(network="vit", spec=spec), entry=entry, hit=True, seconds=0.0)
    bundle = SimpleNamespace(manifest=SimpleNamespace(random_weights=False))
    _show_built(bundle, [made], False)  # type: ignore[arg-type, list-item]
    told = " ".join(capsys.readouterr().err.split())
    assert "vit: attention over 1601 keys: wrong, a warning; verify it" in told
    assert "wrong, a note" not in told


@pytest.mark.rtx
def test_a_second_build_says_that_it_came_from_the_cache(
    run_cli: Cli, fixed_bundle: Path, cache: dict[str, str], built: list[dict[str, Any]]
) -> None:
    done = run_cli("build", fixed_bundle, "--backend", "tensorrt_rtx", "--batch", 1, "--target", "sm89", env=cache)
    assert done.returncode == 0
    assert done.stdout.count("from the cache") == 2
    assert "RANDOM WEIGHTS" in done.stderr


@pytest.mark.rtx
def test_engines_are_listed_inspected_and_verified(
    run_cli: Cli, cache: dict[str, str], built: list[dict[str, Any]]
) -> None:
    listed = json.loads(run_cli("engines", "list", "--json", env=cache).stdout)
    assert {e["key"] for e in listed["engines"]} == {b["key"] for b in built}
    assert built[0]["key"][:16] in run_cli("engines", "list", env=cache).stdout
    shown = json.loads(run_cli("engines", "inspect", built[0]["key"][:10], "--json", env=cache).stdout)
    assert shown["engine"]["sha256"] == built[0]["sha256"]
    assert "image float32[1, 1, 96, 128]" in run_cli("engines", "inspect", built[0]["key"], env=cache).stdout
    assert run_cli("engines", "verify", env=cache).returncode == 0


@pytest.mark.rtx
def test_why_names_the_field_that_changed(
    run_cli: Cli, fixed_bundle: Path, cache: dict[str, str], built: list[dict[str, Any]]
) -> None:
    arguments = ("engines", "why", fixed_bundle, "--backend", "tensorrt_rtx", "--batch", 1, "--json")
    same = json.loads(run_cli(*arguments, "--target", "sm89", env=cache).stdout)["networks"]
    assert [n["cached"] for n in same] == [True, True]
    other = json.loads(run_cli(*arguments, "--target", "sm120", "--level", 1, env=cache).stdout)["networks"]
    assert [n["cached"] for n in other] == [False, False]
    assert [(d["field"], d["wanted"], d["there"]) for d in other[0]["differences"]] == [
        ("targets", ["sm120"], ["sm89"]),
        ("options.level", 1, 3),
    ]
    pair = json.loads(run_cli("engines", "why", built[0]["key"][:12], built[1]["key"][:12], "--json", env=cache).stdout)
    assert {d["field"] for d in pair["networks"][0]["differences"]} == {"graph_sha256", "profiles"}


@pytest.mark.rtx
def test_a_dry_run_builds_nothing(run_cli: Cli, fixed_bundle: Path, tmp_path: Path) -> None:
    env = {"MATCHRT_CACHE": str(tmp_path)}
    done = run_cli(
        "build", fixed_bundle, "--backend", "tensorrt_rtx", "--precision", "fp16", "--dry-run", "--json", env=env
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["buildable"] is True
    assert [n["cached"] for n in answer["networks"]] == [False, False]
    assert any("float16" in note for note in answer["networks"][0]["notes"])
    assert os.listdir(tmp_path / "engines") == []


@pytest.mark.rtx
def test_a_damaged_engine_is_reported_and_built_again(
    run_cli: Cli, fixed_bundle: Path, cache: dict[str, str], built: list[dict[str, Any]]
) -> None:
    path = Path(cache["MATCHRT_CACHE"], "engines", f"{built[0]['key']}.engine")
    path.write_bytes(path.read_bytes()[:-1])
    done = run_cli("engines", "verify", "--json", env=cache)
    assert done.returncode == 1
    states = {e["key"]: e for e in json.loads(done.stdout)["engines"]}
    assert not states[built[0]["key"]]["sound"]
    assert states[built[1]["key"]]["sound"]
    again = run_cli(
        "build", fixed_bundle, "--backend", "tensorrt_rtx", "--batch", 1, "--target", "sm89", "--json", env=cache
    )
    assert [b["cached"] for b in json.loads(again.stdout)["built"]] == [False, True]
    assert run_cli("engines", "verify", env=cache).returncode == 0


@pytest.mark.rtx
def test_networks_built_apart_are_the_same_build(
    run_cli: Cli, fixed_bundle: Path, cache: dict[str, str], built: list[dict[str, Any]]
) -> None:
    command = ("build", fixed_bundle, "--backend", "tensorrt_rtx", "--batch", 1, "--target", "sm89", "--json")
    one = json.loads(run_cli(*command, "--network", "matcher", env=cache).stdout)["built"]
    assert [(b["network"], b["key"], b["cached"]) for b in one] == [("matcher", built[1]["key"], True)]
    dry = json.loads(run_cli(*command, "--network", "extractor", "--dry-run", env=cache).stdout)["networks"]
    assert [n["key"] for n in dry] == [built[0]["key"]]
    wrong = run_cli(*command, "--network", "decoder", env=cache)
    assert wrong.returncode == 2
    assert "no network 'decoder'" in wrong.stderr
    assert "extractor, matcher" in wrong.stderr


def test_onnxruntime_says_that_there_is_nothing_to_build(run_cli: Cli, fixed_bundle: Path, tmp_path: Path) -> None:
    env = {"MATCHRT_CACHE": str(tmp_path)}
    done = run_cli("build", fixed_bundle, "--backend", "onnxruntime", "--json", env=env)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["built"] == []
    assert "nothing to build" in answer["note"]
    assert set(answer["loaded_seconds"]) == {"extractor", "matcher"}
    one = run_cli("build", fixed_bundle, "--backend", "onnxruntime", "--network", "matcher", "--json", env=env)
    assert set(json.loads(one.stdout)["loaded_seconds"]) == {"matcher"}
    half = run_cli(
        "build", fixed_bundle, "--backend", "onnxruntime", "--precision", "fp16", "--option", "optimise=basic", env=env
    )
    assert half.returncode == 0, half.stderr
    assert "optimised by onnxruntime (level basic) and kept" in half.stderr
    assert "one session was created under CPUExecutionProvider" in half.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "name the backend"),
        (("--backend", "tensorflow"), 2, "no backend is called"),
        (("--backend", "tensorrt"), 4, "tensorrt is not installed"),
        (("--backend", "tensorrt_rtx", "--batch", "0"), 2, "--batch takes N"),
        (("--backend", "tensorrt_rtx", "--shapes", "height=64"), 2, "no dynamic axis 'height'"),
        (("--backend", "tensorrt_rtx", "--target", "sm90"), 2, "no target 'sm90'"),
        (("--backend", "tensorrt_rtx", "--option", "lvel=3"), 2, "did you mean 'level'"),
        (("--backend", "tensorrt_rtx", "--precision", "int4"), 2, "int4"),
        (("--backend", "onnxruntime", "--target", "sm89"), 2, "leave --batch, --shapes and --target out"),
        (("--backend", "onnxruntime", "--option", "provider=cuda"), 4, "carries no CUDAExecutionProvider"),
    ],
)
def test_mistakes_are_told_with_their_exit_code(
    run_cli: Cli, fixed_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = run_cli("build", fixed_bundle, *arguments, env={"MATCHRT_CACHE": str(tmp_path)})
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_cache_is_no_error(run_cli: Cli, tmp_path: Path) -> None:
    env = {"MATCHRT_CACHE": str(tmp_path)}
    assert json.loads(run_cli("engines", "list", "--json", env=env).stdout)["engines"] == []
    assert run_cli("engines", "verify", env=env).returncode == 0
    freed = json.loads(run_cli("engines", "prune", "--max-size", "1GB", "--older-than", "1", "--json", env=env).stdout)
    assert freed["freed"] == 0
    assert run_cli("engines", "inspect", "abc", env=env).returncode == 2
    assert run_cli("engines", "prune", "--max-size", "1 parsec", env=env).returncode == 2
