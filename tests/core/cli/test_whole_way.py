"""From published files to matches: fetch, convert, inspect, match, as a person types it."""

from __future__ import annotations

import copy
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from matchrt.cli import run
from matchrt.export.weights import random_weights
from matchrt.model import MatcherSpec, Settings, Variant
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.plugins.manager import Plugins
from matchrt.samples import sample_pairs
from matchrt.settings import resolve


def settings_of(spec: MatcherSpec, variant: Variant) -> Settings:
    return resolve(spec.settings, ("variant", variant.settings), environment={})


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """The weights of `fixed_bundle`, under the networks' own names."""
    spec = get_plugins().matcher("superpoint-lightglue")
    variant = spec.variant("mini")
    hooks = MatcherHooks(get_plugins(), spec)
    return random_weights(hooks, variant, settings_of(spec, variant), 0)[0].state_dict()


@pytest.fixture
def export_of_before(fixed_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A conversion with these options takes the graphs of `fixed_bundle` in place of an export; its check compares them with `state`."""
    import onnx

    import matchrt.export.convert as room

    graphs = {n: onnx.load(fixed_bundle / f"{n}.onnx") for n in ("extractor", "matcher")}
    monkeypatch.setattr(room, "export_network", lambda network, spec, *_: copy.deepcopy(graphs[spec.name]))
    return ["--keypoints", "64", "--size", "96x128"]


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v.clone() for k, v in state.items() if k.startswith(prefix)}


@pytest.fixture
def published(
    state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The two files on a local server, and a `mini` variant that is published there; yields the served folder."""
    folder = tmp_path_factory.mktemp("served")
    torch.save(part(state, "matcher."), folder / "lightglue.pth")
    torch.save(part(state, "extractor."), folder / "superpoint.pth")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    spec = get_plugins().matcher("superpoint-lightglue")
    files = [
        replace(
            w,
            package="",
            format="torch",
            url=f"http://127.0.0.1:{server.server_port}/{name}",
            filename=name,
            free_licence=free,
        )
        for w, name, free in zip(
            spec.variant("mini").weights, ("lightglue.pth", "superpoint.pth"), (True, False), strict=True
        )
    ]
    mini = replace(spec.variant("mini"), weights=tuple(files))
    changed = replace(spec, variants=(mini,))
    monkeypatch.setattr(Plugins, "matcher", lambda self, name: changed)
    monkeypatch.setenv("MATCHRT_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield folder
    server.shutdown()


def test_fetch_asks_for_consent_then_convert_needs_no_file(
    published: Path, export_of_before: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["fetch", "superpoint-lightglue:mini"]) == 4
    assert "--accept-licence" in capfd.readouterr().err
    assert run(["fetch", "superpoint-lightglue:mini", "--accept-licence", "--json"]) == 0
    files = json.loads(capfd.readouterr().out)["files"]
    assert [(f["role"], f["downloaded"], f["held_to"]) for f in files] == [
        ("main", True, "first"),
        ("extractor", True, "first"),
    ]
    assert run(["fetch", "superpoint-lightglue:mini", "--accept-licence", "--json"]) == 0
    files = json.loads(capfd.readouterr().out)["files"]
    assert [(f["downloaded"], f["held_to"]) for f in files] == [(False, "recorded"), (False, "recorded")]
    convert = [
        "convert",
        "superpoint-lightglue:mini",
        *export_of_before,
        "-o",
        str(tmp_path / "b"),
        "--json",
    ]
    assert run(convert) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["weights"]["loaded"] + result["weights"]["backfilled"] > 100
    assert {result["weights"][k] for k in ("missing", "unexpected", "misshapen")} == {0}


def test_offline_says_where_to_put_the_file(
    published: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["fetch", "superpoint-lightglue:mini", "--accept-licence", "--offline"]) == 1
    err = capfd.readouterr().err
    assert "lightglue.pth" in err
    monkeypatch.setenv("MATCHRT_OFFLINE", "1")
    assert run(["fetch", "superpoint-lightglue:mini", "--accept-licence"]) == 1


def test_a_changed_download_is_refused(published: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from matchrt.weights.fetch import cache_folder

    assert run(["fetch", "superpoint-lightglue:mini", "--accept-licence"]) == 0
    place = cache_folder() / "superpoint-lightglue" / "lightglue.pth"
    place.unlink()
    (published / "lightglue.pth").write_bytes(b"something else " * 100)
    assert run(["fetch", "superpoint-lightglue:mini", "--accept-licence"]) == 1
    assert "sha256" in capfd.readouterr().err
    assert not place.exists()


def test_what_a_file_lacks_is_an_error_unless_allowed_and_recorded(
    state: dict[str, torch.Tensor], export_of_before: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lacking = {k: v for k, v in state.items() if "token_confidence" not in k}
    weights = tmp_path / "w.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in lacking.items()}}, weights)
    convert = [
        "convert",
        "superpoint-lightglue:mini",
        "--weights",
        str(weights),
        *export_of_before,
    ]
    assert run([*convert, "-o", str(tmp_path / "b")]) == 1
    err = capfd.readouterr().err
    assert "missing from the file:\n    matcher.token_confidence.0.token.0.weight" in err
    assert run([*convert, "-o", str(tmp_path / "b"), "--allow-missing", "matcher.token_confidence.*", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["weights"]["allowed_missing"] == len(state) - len(lacking) > 0
    manifest = json.loads((tmp_path / "b/bundle.json").read_text())
    assert manifest["weights"]["allow_missing"] == ["matcher.token_confidence.*"]
    assert manifest["weights"]["report"]["counts"]["allowed_missing"] == len(state) - len(lacking)


def test_inspect_tells_what_a_checkpoint_is(
    state: dict[str, torch.Tensor], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "w.ckpt"
    torch.save({"state_dict": {f"module.{k}": v.half() for k, v in state.items()}, "epoch": 3}, weights)
    assert run(["inspect", str(weights), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["wrappers"] == ["state_dict", "module."]
    assert found["dtypes"] == {"float16": len(state)}
    best = found["fits"][0]
    assert (best["matcher"], best["variant"], best["share"]) == ("superpoint-lightglue", "mini", 1.0)
    assert run(["inspect", str(weights)]) == 0
    assert "superpoint-lightglue:mini" in capfd.readouterr().out


def test_match_prints_the_promised_json(mini_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pair = sample_pairs()[1]
    argv = ["match", str(mini_bundle), str(pair.image0), str(pair.image1), "--homography", "--json"]
    assert run([*argv, "--draw", str(tmp_path / "o.png"), "--save", str(tmp_path / "o.h5")]) == 0
    out = capfd.readouterr()
    result = json.loads(out.out)
    assert {"matches", "backend", "precision", "size0", "size1", "homography", "seconds"} <= set(result)
    assert (result["random_weights"], out.err) == (False, "")
    assert result["inliers"] > 20
    assert (tmp_path / "o.png").stat().st_size > 10_000
    assert (tmp_path / "o.h5").is_file()


def test_random_weights_are_named_wherever_the_bundle_is_shown(
    fixed_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`convert` itself says so too: see the plugin without a matcher in `test_installed_plugins`."""
    pair, bundle = sample_pairs()[1], str(fixed_bundle)
    images = [str(pair.image0), str(pair.image1)]
    for argv in (["inspect", bundle], ["match", bundle, *images, "--draw", str(tmp_path / "o.png")]):
        assert run(argv) == 0
        assert "RANDOM WEIGHTS" in capfd.readouterr().err
    assert run(["match", bundle, *images, "--json", "--save", str(tmp_path / "m.json")]) == 0
    assert json.loads(capfd.readouterr().out)["random_weights"] is True
    assert '"random_weights": true' in (tmp_path / "m.json").read_text()
