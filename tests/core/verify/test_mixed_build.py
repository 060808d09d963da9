"""`build --precision mixed`: the search finds the block that was made to lose digits, and the engines carry what was kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from matchrt.backends.onnxruntime import OnnxRuntimeBackend
from matchrt.bundle import read_bundle
from matchrt.cli import run
from matchrt.errors import UsageError
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.verify import VerifyResult
from matchrt.verify.derive import derive_bundle
from matchrt.verify.mixed import choose_kept
from matchrt.verify.subjects import How

BAD = "transformers.4"


@pytest.fixture(scope="module")
def fragile(mini_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small matcher with 30000 added and taken away again in one block: exact enough in float32, ruinous in half."""
    bundle = read_bundle(mini_bundle)
    model = onnx.load(str(bundle.graph("matcher")))
    nodes = list(model.graph.node)
    at = max(i for i, n in enumerate(nodes) if n.name.startswith(f"{BAD}/") and n.op_type == "Add")
    target = nodes[at].output[0]
    nodes[at].output[0] = f"{target}_before"
    nodes[at + 1 : at + 1] = [
        helper.make_node("Add", [f"{target}_before", "far"], [f"{target}_far"], name=f"{BAD}/away"),
        helper.make_node("Sub", [f"{target}_far", "far"], [target], name=f"{BAD}/back"),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array(30000, np.float32), "far"))
    return derive_bundle(bundle, tmp_path_factory.mktemp("fragile") / "b", {"matcher": model}).path


def _build(*argv: object) -> int:
    return run(["build", *map(str, argv)])


def test_the_block_that_needs_float32_is_kept(
    fragile: Path, one_pair: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--backend", "onnxruntime", "--precision", "mixed", "--pairs", one_pair, "--json"]
    assert _build(fragile, *options) == 0
    captured = capfd.readouterr()
    built = {b["network"]: b for b in json.loads(captured.out)["built"]}
    assert f"matcher: float32 blocks besides the matcher's own rules: {BAD}" in captured.err
    assert "extractor: float32 blocks besides the matcher's own rules: none (1 trials" in captured.err
    key = built["matcher"]["key"]
    assert run(["engines", "inspect", key, "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert f'"{BAD}' in json.dumps(
        record["record"]["mixed"]["blocks"] if "record" in record else record["mixed"]["blocks"]
    )

    assert _build(fragile, "--backend", "onnxruntime", "--precision", "fp16", "--json") == 0
    half = {b["network"]: b for b in json.loads(capfd.readouterr().out)["built"]}
    assert half["matcher"]["key"] != key

    # The choice is remembered: the second build asks no trial, and takes the engines from the cache.
    monkeypatch.setattr("matchrt.verify.mixed.search_mixed", lambda *_, **__: pytest.fail("searched again"))
    assert _build(fragile, *options) == 0
    again = {b["network"]: b for b in json.loads(capfd.readouterr().out)["built"]}
    assert again["matcher"]["key"] == key
    assert again["matcher"]["cached"]

    pair = one_pair.read_text("utf-8").splitlines()[1].split()[:2]
    assert run(["match", str(fragile), *pair, "--precision", "mixed", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["precision"] == "mixed"


def test_the_block_is_also_where_verify_says_that_half_goes_wrong(
    fragile: Path, verified: Callable[..., VerifyResult]
) -> None:
    """The bundle's graph in float32 agrees with PyTorch, so that the node can be told: against that graph."""
    engine = How(backend="onnxruntime", precision="fp16", threads=1)
    result = verified(fragile, engine=engine, emulate=True)
    assert not result.passed
    found = result.location
    assert found is not None
    assert found.network == "matcher"
    assert found.culprit in (f"{BAD}/away", f"{BAD}/back")
    assert "so the fault is in the engine" in found.sentence


def test_an_engine_that_cannot_be_looked_into_is_said_so(
    mini_bundle: Path, verified: Callable[..., VerifyResult]
) -> None:
    engine = How(backend="torch", precision="bf16", options={"device": "cpu"}, threads=1)
    result = verified(mini_bundle, engine=engine, locate=True)
    assert result.engine["precision"] == "bf16"
    assert result.location is not None
    assert result.location.point is None
    assert "cannot be looked" in result.location.sentence
    assert "--no-locate" in result.location.sentence


def test_without_a_search_the_command_is_named(mini_bundle: Path) -> None:
    import matchrt

    with pytest.raises(UsageError, match="needs a search") as caught:
        matchrt.load(mini_bundle, precision="mixed")
    assert caught.value.hint is not None
    assert "--backend onnxruntime --precision mixed" in caught.value.hint


def test_trials_on_built_engines(mini_bundle: Path, one_pair: Path) -> None:
    """Where the backend runs here, the engines themselves are measured; onnxruntime stands for one."""
    bundle = read_bundle(mini_bundle)
    plugins = get_plugins()
    hooks = MatcherHooks(plugins, plugins.matcher(bundle.manifest.matcher.id))
    kept = choose_kept(bundle, hooks, OnnxRuntimeBackend(), pairs=one_pair, engines=True)
    assert set(kept) == {"extractor", "matcher"}
    for found in kept.values():
        assert found.record["measured"] == "built engines"
        assert found.rules == ()
        assert found.record["figure"] <= 1
