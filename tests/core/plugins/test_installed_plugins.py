"""Real distributions, built and installed, seen by the real command line."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location("plugin_packages", Path(__file__).with_name("plugin_packages.py"))
assert _spec is not None
assert _spec.loader is not None
packages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(packages)

Site = Callable[..., Path]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Install a plugin once a session."""
    done: dict[tuple[Any, ...], Path] = {}

    def get(kind: str, **options: str) -> Path:
        key = (kind, *sorted(options.items()))
        if key not in done:
            done[key] = packages.install(kind, tmp_path_factory.mktemp(kind), **options)
        return done[key]

    return get


def path_of(*sites: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(map(str, sites))}


def plugins_json(run_cli: Any, *sites: Path, **env: str) -> dict[str, Any]:
    result = run_cli("plugins", "--json", env={**path_of(*sites), **env})
    assert result.returncode == 0, result.stderr
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def test_a_healthy_plugin_is_listed_with_its_matcher(run_cli: Any, site: Site) -> None:
    data = plugins_json(run_cli, site("healthy"))
    (toy,) = [p for p in data["loaded"] if p["name"] == "healthy"]
    assert (toy["distribution"], toy["version"], toy["matchers"]) == ("toy-healthy", "1.2", ["toy"])
    assert "toy:full" in run_cli("models", env=path_of(site("healthy"))).stdout


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("raises", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("exits", "SystemExit: 3"),
        ("unknown_hook", "preproces() is not a hook; did you mean preprocess()?"),
        ("unmarked", "preprocess() is named like a hook but is not marked with @hookimpl"),
        ("wrong_argument", "build_network() takes no argument 'setings'; did you mean 'settings'?"),
        ("newer_api", "it was written for API version 99, this matchrt has 1; upgrade matchrt"),
        ("no_api", "it declares no API version; add MATCHRT_API_VERSION = 1"),
        ("wrong_kind", "register_matchers() must return MatcherSpec objects, got 'toy'"),
        ("takes_backend", "backend 'onnxruntime' is also claimed by matchrt"),
    ],
)
def test_a_broken_plugin_is_shown_with_its_cause_and_the_rest_works(
    run_cli: Any, site: Site, kind: str, cause: str
) -> None:
    data = plugins_json(run_cli, site(kind))
    (failed,) = [f for f in data["failed"] if f["name"] == kind]
    assert failed["distribution"] == "toy-" + kind.replace("_", "-")
    assert any(cause in text for text in failed["causes"]), failed["causes"]
    models = run_cli("models", "--json", env=path_of(site(kind)))
    assert models.returncode == 0
    assert "superpoint-lightglue" in {m["id"] for m in json.loads(models.stdout)}
    assert run_cli("plugins", "--strict", env=path_of(site(kind))).returncode == 1


def test_damaged_metadata_of_one_distribution_takes_no_other_down(run_cli: Any, tmp_path: Path) -> None:
    for name, points in (("garbled", b"[matchrt]\n\xff\xfe = x\n"), ("nameless", b"[matchrt]\nnameless = json\n")):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "entry_points.txt").write_bytes(points)
    data = plugins_json(run_cli, tmp_path)
    assert "lightglue" in [p["name"] for p in data["loaded"]]
    assert ("nameless", "unknown") in [(f["name"], f["distribution"]) for f in data["failed"]]


def test_all_faults_of_a_plugin_are_told_at_once(run_cli: Any, site: Site) -> None:
    data = plugins_json(run_cli, site("two_faults"))
    (failed,) = [f for f in data["failed"] if f["name"] == "two_faults"]
    assert failed["causes"] == [
        "graph_passes() takes no argument 'targt'; did you mean 'target'?",
        "parityy() is not a hook; did you mean parity()?",
    ]


def test_two_plugins_that_claim_one_matcher_are_both_refused_by_name(run_cli: Any, site: Site) -> None:
    data = plugins_json(run_cli, site("healthy"), site("twin"))
    causes = {f["distribution"]: f["causes"][0] for f in data["failed"]}
    assert "matcher 'toy' is also claimed by toy-twin" in causes["toy-healthy"]
    assert "matcher 'toy' is also claimed by toy-healthy" in causes["toy-twin"]
    freed = plugins_json(run_cli, site("healthy"), site("twin"), MATCHRT_DISABLE_PLUGINS="toy-twin")
    assert "toy" in [m for p in freed["loaded"] for m in p["matchers"]]


def test_two_distributions_with_one_entry_point_name_are_refused(run_cli: Any, site: Site) -> None:
    sites = site("healthy"), site("tracer", name="toy-impostor", entry="healthy")
    data = plugins_json(run_cli, *sites)
    assert {f["distribution"] for f in data["failed"]} >= {"toy-healthy", "toy-impostor"}
    assert all("claimed by several distributions" in f["causes"][0] for f in data["failed"] if f["name"] == "healthy")
    chosen = plugins_json(run_cli, *sites, MATCHRT_DISABLE_PLUGINS="toy-impostor:healthy")
    assert "toy" in [m for p in chosen["loaded"] for m in p["matchers"]]


def test_lists_keep_a_plugin_from_being_imported(run_cli: Any, site: Site, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for name, variables in enumerate(
        (
            {"MATCHRT_DISABLE_PLUGINS": "marker"},
            {"MATCHRT_DISABLE_PLUGINS": "other, Toy_Marker"},
            {"MATCHRT_PLUGINS": "lightglue"},
            {"MATCHRT_PLUGINS": ""},
        )
    ):
        data = plugins_json(run_cli, site("marker"), MARKER=str(marker), **variables)
        assert not marker.exists(), name
        assert "marker" in [d["name"] for d in data["disabled"]]
    plugins_json(run_cli, site("marker"), MARKER=str(marker), MATCHRT_PLUGINS="marker")
    assert marker.exists()


def test_a_plugin_adds_a_verb_and_a_taken_one_is_refused(run_cli: Any, site: Site) -> None:
    env = path_of(site("verbs"), site("taken_verb"))
    assert run_cli("hello", env=env).stdout == "hello from a plugin\n"
    assert "Say hello." in run_cli("--help", env=env).stdout
    data = plugins_json(run_cli, site("verbs"), site("taken_verb"))
    assert data["refused_verbs"] == ["taken_verb (toy-taken-verb): the verb 'match' is taken"]


def test_a_plugin_without_a_matcher_adds_a_pass_to_lightglue(
    site: Site, fixed_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, on the graphs that `fixed_bundle` was exported to: the same network, settings and seed."""
    import onnx

    import matchrt.export.convert as room
    from matchrt.cli import run
    from matchrt.plugins import get_plugins

    graphs = {n: onnx.load(fixed_bundle / f"{n}.onnx") for n in ("extractor", "matcher")}
    monkeypatch.setattr(room, "export_network", lambda network, spec, *_: copy.deepcopy(graphs[spec.name]))
    monkeypatch.syspath_prepend(str(site("tracer")))
    bundle = tmp_path / "bundle"
    convert = ["convert", "superpoint-lightglue:mini", "--random-weights", "0", "--keypoints", "64", "--size", "96x128"]
    get_plugins.cache_clear()
    try:
        assert run([*convert, "-o", str(bundle)]) == 0
    finally:
        get_plugins.cache_clear()
    assert "RANDOM WEIGHTS" in capfd.readouterr().err
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert "stamp" in [p["name"] for p in manifest["passes"]]
    for network in ("extractor", "matcher"):
        assert onnx.load(bundle / f"{network}.onnx").producer_name == "stamped by tracer"
        assert graphs[network].producer_name != "stamped by tracer"
