"""Small graphs for tests: written as text, run by onnxruntime without its own optimisations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper


def graph(text: str, opset: int = 18, **constants: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX's text form `(inputs) => (outputs) { nodes }`, with initialisers added by name."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> g {text}')
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"n{i}_{node.op_type}"
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in model.graph.output]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def run_half(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name, with every result really rounded to its type (onnx's reference operators).

    onnxruntime's CPU provider computes much of float16 in float32 and drops the casts between, so it hides what half loses.
    """
    from onnx.reference import ReferenceEvaluator

    names = [o.name for o in model.graph.output]
    with np.errstate(all="ignore"):
        return dict(zip(names, ReferenceEvaluator(model).run(names, dict(feeds)), strict=True))


def operators(model: onnx.ModelProto) -> list[str]:
    """Operator types of the main graph, in order."""
    return [n.op_type for n in model.graph.node]


def same(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    """Byte-equal models."""
    return bool(a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
