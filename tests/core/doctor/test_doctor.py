"""`matchrt doctor` on healthy and on broken Pythons: it never crashes, and every fault has its repair."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
SEGFAULT = "import ctypes\nctypes.string_at(0)\n"
NO_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "onnx", "onnx_graphsurgeon"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""
"""A sitecustomize that hides what only conversion needs; it also makes doctor quick."""


def put(site: Path, name: str, version: str, code: str | None, entry: str = "") -> None:
    """A distribution `name` with the module of the same name; without version its metadata is lost."""
    module = name.replace("-", "_")
    if code is not None:
        (site / f"{module}.py").write_text(code)
    info = site / f"{module}-{version or '9'}.dist-info"
    info.mkdir()
    if version:
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if entry:
        (info / "entry_points.txt").write_text(f"[matchrt]\n{entry} = {module}\n")


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert len({(f["group"], f["name"]) for f in report["findings"]}) == len(report["findings"]), "a name stands twice"
    return {f"{f['group']}/{f['name']}": f for f in report["findings"]}


@pytest.fixture(scope="module")
def healthy(run_cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """This Python as it is, with an empty cache."""
    env = {"MATCHRT_CACHE": str(tmp_path_factory.mktemp("healthy")), "MATCHRT_CASHE": "typo"}
    done = run_cli("doctor", "--json", "--for", "onnxruntime,hdf5", "--for", "torch", "--for", "core", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert os.listdir(env["MATCHRT_CACHE"]) == [], "an examination leaves nothing behind"
    return report


@pytest.fixture(scope="module")
def broken(run_cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    """No torch; a TensorRT that crashes; lost metadata; a plugin that raises, one with broken entry points; no place for a cache."""
    site = tmp_path_factory.mktemp("broken")
    put(site, "tensorrt", "10.3.0", SEGFAULT)
    put(site, "h5py", "", None)
    put(site, "plugin-raises", "1.2", "import no_such_module_anywhere\n", entry="raises")
    put(site, "plugin-garbled", "1.0", "")
    (site / "plugin_garbled-1.0.dist-info/entry_points.txt").write_bytes(b"[matchrt]\n\xff\xfe = x\n")
    put(site, "rich", "9.1.0", None)
    (site / "sitecustomize.py").write_text(NO_TORCH)
    env = {"PYTHONPATH": str(site), "MATCHRT_CACHE": "/proc/no/such"}
    needs = ("tensorrt", "hdf5", "plugins", "core", "convert", "onnxruntime", "onnxruntime:build", "cuda", "gpu")
    done = run_cli("doctor", "--json", *(a for n in needs for a in ("--for", n)), env=env)
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout), done


def test_a_healthy_python_is_told_group_by_group(healthy: dict[str, Any]) -> None:
    found = by_name(healthy)
    for name in ("numpy", "opencv-python-headless", "onnxruntime", "pydantic", "matchrt"):
        assert found[f"packages/{name}"]["state"] == "ok"
    for name in ("plugins/lightglue", "backends/onnxruntime", "providers/onnxruntime:cpu", "extras/convert"):
        assert found[name]["state"] == "ok", found[name]
    assert [p["version"] for p in found["extras/convert"]["data"]["packages"]].count(None) == 0
    assert found["backends/torch"]["value"].startswith(found["backends/torch"]["data"]["version"])
    assert healthy["needs"] == [
        {"name": n, "met": True, "why": [], "repair": []} for n in ("onnxruntime", "hdf5", "torch", "core")
    ]
    for room in ("weights", "bundles", "engines"):
        assert found[f"places/{room} cache"]["data"]["exists"] is False


def test_versions_are_those_of_the_metadata(healthy: dict[str, Any]) -> None:
    from importlib.metadata import version

    found = by_name(healthy)
    for name in ("numpy", "click", "pillow"):
        assert found[f"packages/{name}"]["data"]["package"]["version"] == version(name)


def test_everything_that_is_not_good_has_a_repair(healthy: dict[str, Any], broken: tuple[dict[str, Any], Any]) -> None:
    for report in (healthy, broken[0]):
        for finding in report["findings"]:
            assert (finding["repair"] is None) == (finding["state"] == "ok"), finding
        assert sum(report["counts"].values()) == len(report["findings"])


def test_a_variable_that_nothing_reads_is_told(healthy: dict[str, Any]) -> None:
    found = by_name(healthy)["python/MATCHRT_CASHE"]
    assert (found["state"], found["repair"].split(";")[0]) == ("warn", "unset MATCHRT_CASHE")


def test_a_library_that_crashes_is_a_finding(broken: tuple[dict[str, Any], Any]) -> None:
    report, done = broken
    assert done.returncode == 4
    found = by_name(report)
    assert found["backends/tensorrt"]["state"] == "broken"
    assert "SIGSEGV" in found["backends/tensorrt"]["value"]
    assert found["extras/tensorrt"]["state"] == "broken"
    assert found["backends/onnxruntime"]["state"] == "ok"


def test_lost_metadata_is_a_finding(broken: tuple[dict[str, Any], Any]) -> None:
    found = by_name(broken[0])["extras/hdf5"]
    assert found["state"] == "broken"
    assert "metadata" in found["value"]
    assert found["repair"].startswith("pip install --force-reinstall --no-deps 'h5py")


def test_a_package_that_is_too_old_is_a_finding(broken: tuple[dict[str, Any], Any]) -> None:
    found = by_name(broken[0])["packages/rich"]
    assert (found["state"], found["repair"]) == ("warn", "pip install --upgrade 'rich>=13'")


def test_a_broken_plugin_is_named_with_its_cause(broken: tuple[dict[str, Any], Any]) -> None:
    found = by_name(broken[0])
    assert found["plugins/raises"]["state"] == "broken"
    assert "no_such_module_anywhere" in found["plugins/raises"]["value"]
    assert "MATCHRT_DISABLE_PLUGINS=plugin-raises" in found["plugins/raises"]["repair"]
    assert found["plugins/lightglue"]["state"] == "ok"
    assert "entry points cannot be read" in found["packages/plugin-garbled"]["value"]


def test_a_cache_that_cannot_be_made_is_a_finding(broken: tuple[dict[str, Any], Any]) -> None:
    for room in ("weights", "bundles", "engines"):
        found = by_name(broken[0])[f"places/{room} cache"]
        assert found["state"] == "broken"
        assert "/proc cannot be written to" in found["value"]
        assert "MATCHRT_CACHE" in found["repair"]


def test_needs_that_are_not_met_say_why(broken: tuple[dict[str, Any], Any]) -> None:
    needs = {n["name"]: n for n in broken[0]["needs"]}
    assert {n for n, need in needs.items() if need["met"]} == {"onnxruntime"}
    for name, word in {
        "tensorrt": "SIGSEGV",
        "hdf5": "h5py",
        "plugins": "no_such_module_anywhere",
        "core": "/proc cannot be written to",
        "convert": "No module named 'onnx'",
        "onnxruntime:build": "onnx",
        "cuda": "does not carry it",
    }.items():
        assert any(word in line for line in needs[name]["why"]), needs[name]
        assert needs[name]["repair"]
    assert any("rich: 9.1.0" in line for line in needs["core"]["why"])
    assert "pip install --force-reinstall --no-deps 'onnx>=" in needs["convert"]["repair"][0]


def test_a_plugin_that_crashes_leaves_the_rest_standing(run_cli: Cli, tmp_path: Path) -> None:
    put(tmp_path, "plugin-crashes", "1", SEGFAULT, entry="crashes")
    (tmp_path / "sitecustomize.py").write_text(NO_TORCH)
    done = run_cli("doctor", "--for", "plugins", "--for", "gpu", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 4
    assert "SIGSEGV" in done.stdout
    assert "for plugins: ✗ not met" in done.stdout
    assert "onnxruntime:cpu" in done.stdout
    assert "Traceback" not in done.stderr


def test_an_unknown_need_is_a_usage_error(run_cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_TORCH)
    done = run_cli("doctor", "--for", "tensorflow", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert "'tensorflow'" in done.stderr
    for name in ("convert", "tensorrt", "tensorrt_rtx", "onnxruntime", "torch", "cuda", "hdf5", "pycuda", "rtx"):
        assert name in done.stderr
