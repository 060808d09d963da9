"""Tokens in eights for TensorRT 8: the same function, an even number everywhere, and only where it is wanted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from roma_files import HIGH, SIZE
from roma_oracle import make_twins, tiny_config

import matchrt_roma.build
from matchrt.export.onnx_export import export_network
from matchrt.graph.attention import find_attention
from matchrt.graph.edit import copy_model
from matchrt.graph.linter import lint
from matchrt.graph.passes import BUILT_IN, run_passes
from matchrt.graph.prepare import prepare
from matchrt.graph.types import shapes
from matchrt.model import Stage, Target
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.settings import resolve
from matchrt_roma.passes import FILL_TOKENS, FILLER, MULTIPLE, fill_tokens

TRT86 = Target(backend="tensorrt", version="8.6.0", precision="fp32")
TOKENS = 65
"""8x8 patches of an image of 112x112 pixels, and the class token."""


@pytest.fixture(scope="module")
def vit(part_graph: Callable[[str], onnx.ModelProto]) -> onnx.ModelProto:
    return prepare(run_passes(copy_model(part_graph("vit")), BUILT_IN, "vit"), TRT86, network="vit").model


@pytest.fixture(scope="module")
def filled(vit: onnx.ModelProto) -> onnx.ModelProto:
    return fill_tokens(vit)


def run(model: onnx.ModelProto, pairs: int = 1) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = np.random.default_rng(3).standard_normal((pairs, 2, 3, 112, 112)).astype(np.float32)
    (output,) = session.run(None, {session.get_inputs()[0].name: feed})
    return np.asarray(output)


def without(model: onnx.ModelProto, filler: float) -> onnx.ModelProto:
    """`model` with another value in the place of `FILLER`."""
    changed = copy_model(model)
    for tensor in changed.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if (array == FILLER).any():
            tensor.CopyFrom(numpy_helper.from_array(np.where(array == FILLER, np.float32(filler), array), tensor.name))
    return changed


def test_it_is_the_same_function(vit: onnx.ModelProto, filled: onnx.ModelProto) -> None:
    onnx.checker.check_model(filled, full_check=True)
    want = run(vit)
    assert np.abs(run(filled) - want).max() <= 5e-6 * np.abs(want).max()


def test_what_is_filled_in_has_no_weight_only_because_it_is_masked(
    vit: onnx.ModelProto, filled: onnx.ModelProto
) -> None:
    want = run(vit)
    assert np.abs(run(without(filled, 0.0)) - want).max() > 1e-3 * np.abs(want).max()


def test_no_tensor_keeps_the_odd_number(vit: onnx.ModelProto, filled: onnx.ModelProto) -> None:
    before = [s for s in shapes(vit).values() if TOKENS in s]
    after = [s for s in shapes(filled).values() if TOKENS in s]
    assert len(before) > 50
    assert not after
    keys = {shapes(filled)[a.softmax.output[0]][-1] for a in find_attention(filled)}
    assert keys == {TOKENS + -TOKENS % MULTIPLE}
    assert any("odd number" in f.limit for f in lint(vit, TRT86))
    assert not any("odd number" in f.limit for f in lint(filled, TRT86))


def test_any_number_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = MatcherHooks(get_plugins(), get_plugins().matcher("roma"))
    monkeypatch.setattr(matchrt_roma.build, "CONFIG", tiny_config(37))
    variant = hooks.matcher.variant("coarse")
    settings = resolve(
        hooks.matcher.settings,
        ("variant", variant.settings),
        ("flag", {"size": f"{SIZE}x{SIZE}", "leaf": 40, "pairs": 3}),
        environment={},
    )
    (part,) = (n for n in hooks.matcher.networks_of(variant.wired(settings)) if n.name == "vit")
    example = hooks.example_inputs(variant, settings)["vit"]
    with torch.no_grad():
        network = make_twins(37, SIZE, HIGH).ours.get_submodule(part.module_path)
        model = export_network(network, part, example, Target())
    plain = prepare(model, TRT86, network="vit").model
    changed = prepare(model, TRT86, network="vit", passes=[FILL_TOKENS]).model
    assert TOKENS not in {size for shape in shapes(changed).values() for size in shape}
    for pairs in (1, 3):
        want = run(plain, pairs)
        assert want.shape[0] == pairs
        assert np.abs(run(changed, pairs) - want).max() <= 5e-6 * np.abs(want).max()


def test_twice_is_once(filled: onnx.ModelProto) -> None:
    assert fill_tokens(filled) is filled


@pytest.mark.parametrize("name", ["coarse", "pyramid"])
def test_other_networks_are_left_alone(part_graph: Callable[[str], onnx.ModelProto], name: str) -> None:
    model = part_graph(name)
    assert fill_tokens(model) is model


def test_a_transformer_that_is_cut_otherwise_is_left_alone(vit: onnx.ModelProto) -> None:
    other = copy_model(vit)
    (cut,) = (
        n
        for n in other.graph.node
        if n.op_type == "Slice"
        and shapes(other)[n.input[0]][1] == TOKENS
        and shapes(other)[n.output[0]][1] == TOKENS - 1
    )
    other.graph.initializer.append(numpy_helper.from_array(np.asarray([0], np.int32), "from_the_first"))
    cut.input[1] = "from_the_first"
    assert fill_tokens(other) is other


@pytest.mark.parametrize(
    ("backend", "version", "precision", "wanted"),
    [
        ("tensorrt", "8.6.0", "fp32", True),
        ("tensorrt", "8.6.0", "mixed", True),
        ("tensorrt", "8.6.0", "fp16", False),
        ("tensorrt", "10.3.0", "fp32", False),
        ("tensorrt_rtx", "1.7.0", "fp32", False),
        ("onnxruntime", "1.20", "fp32", False),
    ],
)
def test_where_it_is_applied(backend: str, version: str, precision: str, wanted: bool) -> None:
    for matcher in ("roma", "matchanything-roma"):
        hooks = MatcherHooks(get_plugins(), get_plugins().matcher(matcher))
        target = Target(backend=backend, version=version, precision=precision)
        assert (FILL_TOKENS in hooks.graph_passes(target, Stage.PREPARE, "vit")) == wanted
        assert FILL_TOKENS not in hooks.graph_passes(target, Stage.PREPARE, "coarse")
