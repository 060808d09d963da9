"""ONNX in onnxruntime against the network and the plain rules, its nodes, and a TensorRT builder that needs no GPU."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from matchrt_eloftr.networks import EfficientLoFTR, GraphSettings, prepare_for_export
from matchrt_eloftr.networks.network import INPUTS, OUTPUTS

SIZE = (192, 256)
SETTINGS = GraphSettings(SIZE, SIZE, top_k=512, similarity_elements=1 << 18)
VALID = ((160, 256), (192, 224))
FORBIDDEN = ("NonZero", "Scatter", "If", "Loop", "Unique", "Scan", "GridSample", "Einsum", "GatherND", "Mod")

RECIPES: dict[str, dict[str, Any]] = {
    "mutual": {},
    "every-row-computed-again": {"top_k": None, "keep_elements": 0},
    "opt": {"score": "similarity"},
    "one-to-many": {"mutual": False, "per_row": 4, "score_floor": 0.001, "top_k": 2048},
    "frozen-valid": {"valid": VALID},
    "input-valid": {"valid": "input"},
}


@pytest.fixture(scope="module")
def pair(pairs: Any) -> tuple[Tensor, Tensor]:
    return pairs(*SIZE, (16, 8))


@pytest.fixture(scope="module")
def network(make_network: Any, pair: tuple[Tensor, Tensor]) -> EfficientLoFTR:
    return make_network(SETTINGS, pair)


@pytest.fixture(scope="module")
def exported(network: EfficientLoFTR, pair: Any, resettle: Any) -> Callable[[str, bool], onnx.ModelProto]:
    """`exported(recipe, dynamo)`: the small network's graph, exported once."""

    @lru_cache
    def make(recipe: str, dynamo: bool) -> onnx.ModelProto:
        changed = resettle(network, **RECIPES[recipe])
        return export(prepare_for_export(changed), with_valid(changed.settings, pair), dynamo=dynamo)

    return make


def export(network: EfficientLoFTR, inputs: tuple[Tensor, ...], *, dynamo: bool) -> onnx.ModelProto:
    names: dict[str, Any] = {"input_names": list(INPUTS[: len(inputs)]), "output_names": list(OUTPUTS)}
    if dynamo:
        program = torch.onnx.export(network, inputs, dynamo=True, opset_version=18, verbose=False, **names)
        assert program is not None
        return program.model_proto
    buffer = io.BytesIO()
    torch.onnx.export(network, inputs, buffer, dynamo=False, opset_version=17, **names)
    return onnx.load_from_string(buffer.getvalue())


def with_valid(settings: GraphSettings, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if settings.valid != "input":
        return images
    return (*images, *(torch.tensor([v], dtype=torch.int32) for v in VALID))


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def run(session: onnxruntime.InferenceSession, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    return session.run(list(OUTPUTS), {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=False)})


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_onnx_equals_the_rules_on_pairs_it_was_not_traced_with(
    network: EfficientLoFTR,
    pair: Any,
    pairs: Any,
    swapped: Any,
    plain: Any,
    differ: Any,
    resettle: Any,
    exported: Any,
    recipe: str,
    dynamo: bool,
) -> None:
    settings = resettle(network, **RECIPES[recipe]).settings
    prepared = prepare_for_export(resettle(network, **RECIPES[recipe]))
    model = exported(recipe, dynamo)
    onnx.checker.check_model(model, full_check=True)
    operators = {node.op_type for node in model.graph.node}
    assert not {o for o in operators if o.startswith(FORBIDDEN) and o != "IsInf"}
    session = session_of(model)
    threshold = 25.0 if recipe == "opt" else 0.001 if recipe == "one-to-many" else 0.01
    rules = {"raw": recipe == "opt", "mutual": settings.mutual, "valid": VALID if "valid" in recipe else None}
    counts = []
    for images in (pair, (pair[0], swapped(pair[1])), pairs(*SIZE, (0, 16), seed=5)):
        inputs = with_valid(settings, images)
        outputs = run(session, inputs)
        expected = plain(network).match(*images, threshold, **rules)
        found = differ(expected, outputs, threshold)
        counts.append(len(expected.cells))
        if recipe == "one-to-many":
            assert not found.extra
            assert found.keypoints0 == 0.0
            assert found.keypoints1 <= 2e-5
            assert int(outputs[5][0]) == len(expected.cells)
            assert len(found.missing) <= 0.1 * len(expected.cells)
        else:
            found.require(at_least=10, score=2e-3 if recipe == "opt" else 1e-4)
        with torch.no_grad():
            for mine, theirs, name in zip(outputs, prepared(*inputs), OUTPUTS, strict=True):
                assert mine.shape == tuple(theirs.shape), name
                assert mine.dtype == theirs.numpy().dtype, name
    assert len(set(counts)) == 3, "each pair needs another number of matches, or a frozen one would pass"


def test_outputs_have_the_published_shapes(exported: Any) -> None:
    model = exported("mutual", True)
    found = {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim] for o in model.graph.output}
    assert found == {
        "keypoints0": [1, 512, 2],
        "keypoints1": [1, 512, 2],
        "scores": [1, 512],
        "cells": [1, 512, 2],
        "count": [1],
        "candidates": [1],
    }


@pytest.mark.rtx
@pytest.mark.parametrize("recipe", RECIPES)
def test_tensorrt_rtx_builds_every_recipe(exported: Any, recipe: str) -> None:
    """Parses and builds on a CPU. It says nothing about numbers or speed, and creates no runtime."""
    trt = pytest.importorskip("tensorrt_rtx")
    model = exported(recipe, True)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    definition = builder.create_network(0)
    parser = trt.OnnxParser(definition, logger)
    parsed = parser.parse(model.SerializeToString())
    assert parsed, [parser.get_error(n).desc() for n in range(parser.num_errors)]
    plan = builder.build_serialized_network(definition, builder.create_builder_config())
    assert plan is not None
    assert plan.nbytes > 100_000
    assert [definition.get_output(n).name for n in range(definition.num_outputs)] == list(OUTPUTS)
