"""Parse and build with the real TensorRT-RTX builder, which needs no GPU. Never make a `Runtime` here: without a GPU it crashes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import tensorrt_rtx as trt

Sizes = Mapping[str, tuple[int, int, int]]


class _Log(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def log(self, severity: object, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)
        elif severity == trt.ILogger.WARNING:
            self.warnings.append(message)


_LOG = _Log()
"""TensorRT keeps the first logger of a process."""


def build(model: onnx.ModelProto, axes: Sizes | None = None) -> tuple[int, list[str]]:
    """Size of the plan (0 where parser or builder refuse) and what they complained about. `axes`: (min, opt, max) by axis name."""
    _LOG.errors.clear()
    _LOG.warnings.clear()
    builder = trt.Builder(_LOG)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, _LOG)
    if not parser.parse(model.SerializeToString()):
        return 0, [parser.get_error(i).desc() for i in range(parser.num_errors)] or ["refused by the parser"]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    dynamic = False
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if any(d.dim_param for d in dims):
            shapes = [[(axes or {})[d.dim_param][k] if d.dim_param else d.dim_value for d in dims] for k in range(3)]
            profile.set_shape(value.name, *shapes)
            dynamic = True
    if dynamic:
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return (0, list(_LOG.errors) or ["refused by the builder"]) if plan is None else (plan.nbytes, [])


def warnings() -> list[str]:
    """Warnings of the last build."""
    return list(_LOG.warnings)
