"""Every exported part at tiny size: ONNX in onnxruntime against the network, its operators, and a real builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from roma_files import HIGH, SIZE
from roma_oracle import images, make_twins
from torch import Tensor

from matchrt_roma.networks import Part, Roma
from matchrt_roma.networks.roma import PARTS

TOLERANCE = 1e-4
# The best anchor may flip between two that tie in float32, which moves one token and what is refined from it.
# There are 128 tokens (2 directions of 8x8); budget: one of them, so 1/128 of a part's elements may differ by more.
OUTLIERS = 1 / 128
FORBIDDEN = {"Inverse", "NonZero", "EyeLike", "If", "Loop", "Scan", "GatherND", "ScatterND", "TopK", "Range"}
NAMES = tuple(dict.fromkeys(name for names in PARTS.values() for name in names))
# The others are covered by these, by test_roma_whole_way and by test_roma_precision.
QUICK = ("vit", "gp_readout", "refine_final")
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.fixture(scope="module")
def network() -> Roma:
    return make_twins(37, SIZE, HIGH).ours


@pytest.fixture(scope="module")
def tensors(network: Roma) -> dict[str, Tensor]:
    return every_tensor(network)


def export(part: Part, tensors: dict[str, Tensor], opset: int, *, dynamic: bool = False) -> onnx.ModelProto:
    args = tuple(tensors[name] for name in part.inputs)
    pairs = torch.export.Dim("pairs", min=1, max=8)
    program = torch.onnx.export(
        part,
        args,
        dynamo=True,
        opset_version=opset,
        input_names=list(part.inputs),
        output_names=list(part.outputs),
        dynamic_shapes=tuple({0: pairs} for _ in args) if dynamic else None,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


Exported = Callable[[str], onnx.ModelProto]


@pytest.fixture(scope="module")
def exported(part_graph: Exported) -> Exported:
    """Each part at opset 18, one pair, exported once for all tests."""
    return part_graph


def every_tensor(network: Roma) -> dict[str, Tensor]:
    with torch.no_grad():
        return network.run({"images": images(2, SIZE)[None], "images_high": images(2, HIGH)[None]})


def run(model: onnx.ModelProto, part: Part, tensors: dict[str, Tensor]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [tensor.name for tensor in session.get_inputs()] == list(part.inputs)
    assert [tensor.name for tensor in session.get_outputs()] == list(part.outputs)
    return session.run(None, {name: tensors[name].numpy() for name in part.inputs})


def assert_close(part: Part, results: list[np.ndarray], tensors: dict[str, Tensor]) -> None:
    expected = part.named(tensors)
    for name, result in zip(part.outputs, results, strict=True):
        difference = np.abs(result - expected[name].numpy())
        assert result.shape == expected[name].shape
        assert float((difference > TOLERANCE).mean()) <= OUTLIERS, name


@pytest.mark.parametrize("name", EVERY)
def test_onnx_equals_the_part(network: Roma, tensors: dict[str, Tensor], exported: Exported, name: str) -> None:
    part = network.part(name)
    model = exported(name)
    onnx.checker.check_model(model, full_check=True)
    assert not {node.op_type for node in model.graph.node} & FORBIDDEN
    assert {node.domain for node in model.graph.node} == {""}
    assert not any(
        "mask_token" in i.name or "pos_embed" in i.name or "pos_conv" in i.name for i in model.graph.initializer
    )
    assert_close(part, run(model, part, tensors), tensors)


@pytest.mark.parametrize(
    ("name", "opset"), [("vit", 17), ("gp_readout", 17), ("coarse_final", 17), ("upsample", 17), ("coarse", 20)]
)
def test_other_opsets(network: Roma, tensors: dict[str, Tensor], name: str, opset: int) -> None:
    part = network.part(name)
    model = export(part, tensors, opset)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
    assert_close(part, run(model, part, tensors), tensors)


@pytest.mark.slow  # bundles of several pairs are in test_roma_pairs
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_of_any_number_of_pairs(network: Roma, tensors: dict[str, Tensor], name: str) -> None:
    part = network.part(name)
    model = export(part, tensors, 18, dynamic=True)
    assert not {node.op_type for node in model.graph.node} & FORBIDDEN
    three = network.run(
        {
            "images": torch.stack([images(2, SIZE, seed) for seed in (3, 4, 5)]),
            "images_high": torch.stack([images(2, HIGH, seed) for seed in (3, 4, 5)]),
        }
    )
    assert_close(part, run(model, part, three), three)


def test_attention_scales_before_the_product(exported: Exported) -> None:
    model = exported("vit")
    producers = {output: node for node in model.graph.node for output in node.output}
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 2
    for node in softmaxes:
        product = producers[node.input[0]]
        assert product.op_type == "MatMul"
        assert producers[product.input[0]].op_type == "Mul"


@pytest.mark.rtx
@pytest.mark.parametrize("name", EVERY)
def test_tensorrt_rtx_builds(name: str, exported: Exported, tmp_path: Path) -> None:
    import tensorrt_rtx as trt

    path = tmp_path / f"{name}.onnx"
    onnx.save(exported(name), path)
    builder = trt.Builder(_rtx_logger(trt))
    definition = builder.create_network(0)
    parser = trt.OnnxParser(definition, _rtx_logger(trt))
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    engine = builder.build_serialized_network(definition, config)
    assert engine is not None
    assert engine.nbytes > 0


_LOGGERS: list[object] = []


def _rtx_logger(trt: object) -> object:
    """One logger for the process: TensorRT keeps the first it is given."""
    if not _LOGGERS:
        _LOGGERS.append(trt.Logger(trt.Logger.ERROR))  # type: ignore[attr-defined]
    return _LOGGERS[0]
