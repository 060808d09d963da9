"""Several pairs in one run: a batch gives what single pairs give, and every graph is prepared and built for it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from roma_files import Cli

import matchrt
from matchrt.cli import run
from matchrt.engines.profiles import Range, axis_ranges, frozen_axes, profiles_of
from matchrt.errors import UsageError
from matchrt.graph.linter import lint
from matchrt.graph.prepare import prepare
from matchrt.graph.types import type_problems
from matchrt.model import Target
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.samples import sample_pairs

Bundles = Callable[[str], Path]
WAYS = ("matchanything-roma:full", "roma:coarse", "matchanything-roma:encoder-gp")
PARTS = [
    (WAYS[0], "vit"),
    (WAYS[0], "gp"),
    (WAYS[0], "coarse"),
    (WAYS[0], "upsample"),
    *(
        pytest.param(way, part, marks=pytest.mark.slow)
        for way, parts in zip(WAYS, (("pyramid", "refine"), ("pyramid8", "coarse_final"), ("gp_readout",)), strict=True)
        for part in parts
    ),
]


def shown(matches: matchrt.Matches) -> list[np.ndarray]:
    assert matches.warp is not None
    return [
        matches.keypoints0,
        matches.keypoints1,
        matches.scores,
        np.asarray(matches.warp.warp),
        np.asarray(matches.warp.certainty),
    ]


@pytest.mark.parametrize("name", WAYS)
def test_a_batch_gives_the_bits_of_single_pairs(name: str, bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pairs of different sizes, a batch of five asked of a bundle for three: runs of three and one."""
    first, second = ((str(p.image0), str(p.image1)) for p in sample_pairs()[:2])
    pairs = [first, second, first[::-1], (second[0], first[1])]
    with matchrt.load(bundles(name)) as matcher:
        assert [(a.name, a.min, a.max) for a in matcher.manifest.axes] == [("pairs", 1, 3)]
        single = [matcher(*pair) for pair in pairs]
        sizes: list[int] = []
        for session in matcher.sessions().values():
            plain = session.run
            monkeypatch.setattr(
                session, "run", lambda i, plain=plain: sizes.append(len(next(iter(i.values())))) or plain(i)
            )
        together = list(matcher.match_many(pairs, batch_size=5))
    assert sizes == [3] * len(matcher.manifest.steps) + [1] * len(matcher.manifest.steps)
    for one, other in zip(single, together, strict=True):
        for a, b in zip(shown(one), shown(other), strict=True):
            assert np.array_equal(a, b)
    assert not np.array_equal(shown(single[0])[3], shown(single[1])[3]), "entries could be swapped unseen"


def test_every_input_and_output_leads_with_the_pairs(bundles: Bundles) -> None:
    for name in WAYS:
        for path in bundles(name).glob("*.onnx"):
            graph = onnx.load(str(path)).graph
            for value in (*graph.input, *graph.output):
                assert value.type.tensor_type.shape.dim[0].dim_param == "pairs", (path, value.name)


@pytest.fixture(scope="module")
def opened(bundles: Bundles) -> Callable[[str], Any]:
    from matchrt.bundle import read_bundle

    return lambda name: read_bundle(bundles(name))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("name", "part"), PARTS)
def test_a_frozen_number_of_pairs_leaves_no_trace_of_the_axis(
    name: str, part: str, precision: str, opened: Callable[[str], Any]
) -> None:
    """An engine for two pairs has the nodes of one for a single pair, nothing works out shapes as it runs; and it has its bits."""
    target = Target(backend="tensorrt_rtx", precision=precision)
    models = []
    for count in (1, 2):
        model = prepared(opened(name), part, target, Range(count, count, count))
        assert type_problems(model) == []
        assert [f for f in lint(model, target) if f.severity == "error"] == []
        values = (*model.graph.input, *model.graph.output)
        assert {v.type.tensor_type.shape.dim[0].dim_value for v in values} == {count}
        models.append(model)
    operators = [sorted(n.op_type for n in model.graph.node) for model in models]
    assert operators[0] == operators[1]
    assert "Shape" not in operators[0]
    rng = np.random.default_rng(0)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in models[1].graph.input}
    feeds = {n: rng.random(shape, np.float32) for n, shape in shapes.items()}
    single = [computed(models[0], {n: v[i : i + 1] for n, v in feeds.items()}) for i in (0, 1)]
    for both, *alone in zip(computed(models[1], feeds), *single, strict=True):
        assert np.array_equal(both, np.concatenate(alone))
        assert not np.array_equal(*alone), "entries could be swapped unseen"


@pytest.mark.rtx
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("batch", [Range(2, 2, 2), None], ids=["two", "one-to-three"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("name", "part"), PARTS)
def test_tensorrt_rtx_builds(
    name: str,
    part: str,
    precision: str,
    batch: Range | None,
    opened: Callable[[str], Any],
    rtx_builder: ModuleType,
) -> None:
    model = prepared(opened(name), part, Target(backend="tensorrt_rtx", precision=precision), batch)
    size, complaints = rtx_builder.build(model, {"pairs": (1, 1, 3)})
    assert size > 10_000, complaints


def computed(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds)]


def prepared(bundle: Any, part: str, target: Target, batch: Range | None) -> onnx.ModelProto:
    """As `matchrt build --batch` prepares it."""
    hooks = MatcherHooks(get_plugins(), get_plugins().matcher(bundle.manifest.matcher.id))
    contract, ranges = bundle.manifest.network(part), axis_ranges(bundle.manifest, batch=batch)
    assert {p.max[0] for p in profiles_of(contract, ranges)} == {3 if batch is None else batch.max}
    rules = [r for r in hooks.precision_rules(target) if r.networks is None or part in r.networks]
    model = onnx.load(str(bundle.graph(part)))
    return prepare(model, target, network=part, freeze=frozen_axes(contract, ranges), rules=rules).model


@pytest.mark.rtx
def test_build_takes_a_batch(bundles: Bundles, cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("build", bundles("roma:coarse"), "--backend", "tensorrt_rtx", "--target", "sm89", "--dry-run", "--json")
    plans = json.loads(cli(*words, "--batch", 2))
    assert plans["buildable"]
    profiles = {p["input"]: p["max"][0] for n in plans["networks"] for p in n["spec"]["profiles"]}
    assert profiles == dict.fromkeys(("images", "f16", "f8", "mean"), 2)
    assert run([*map(str, words), "--batch", "4"]) == 2
    assert "goes from 1 to 3" in capfd.readouterr().err


def test_a_fixed_bundle_names_the_setting(opened: Callable[[str], Any]) -> None:
    manifest = opened("roma:coarse").manifest
    fixed = manifest.model_copy(
        update={
            "axes": (),
            "settings": {**manifest.settings, "pairs": 1},
            "networks": tuple(
                n.model_copy(
                    update={"inputs": tuple(t.model_copy(update={"shape": (1, *t.shape[1:])}) for t in n.inputs)}
                )
                for n in manifest.networks
            ),
        }
    )
    with pytest.raises(UsageError, match="fixed to") as caught:
        axis_ranges(fixed, batch=Range(4, 4, 4))
    assert "--set pairs=4" in str(caught.value.hint)
