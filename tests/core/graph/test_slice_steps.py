"""Explicit steps of a Slice: the same result, idempotent, and accepted where the default is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from matchrt.graph.slice_steps import write_slice_steps


def model(width: Any, axes: bool = True) -> onnx.ModelProto:
    constants = {"s": np.array([0], width), "e": np.array([1], width), "a": np.array([1 if axes else 0], width)}
    inputs = ["x", "s", "e", "a"] if axes else ["x", "s", "e"]
    graph = helper.make_graph(
        [helper.make_node("Slice", inputs, ["y"], name="slice")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 1] if axes else [1, 2])],
        [numpy_helper.from_array(constants[n], n) for n in inputs[1:]],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("width", [np.int32, np.int64])
@pytest.mark.parametrize("axes", [True, False])
def test_steps_are_written_once_and_change_nothing(width: Any, axes: bool) -> None:
    before = model(width, axes)
    after = write_slice_steps(model(width, axes))
    onnx.checker.check_model(after, full_check=True)
    assert len(after.graph.node[0].input) == 5
    assert write_slice_steps(onnx.ModelProto.FromString(after.SerializeToString())) == after
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    answers = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for m in (before, after)
    ]
    np.testing.assert_array_equal(*answers)


@pytest.mark.rtx
def test_rtx_refuses_the_default_and_takes_the_written_steps(tmp_path: Path) -> None:
    """If the first half fails one day, the importer was mended and this pass can go."""
    from matchrt.backends.building import BuildJob
    from matchrt.backends.tensorrt._api import load_api
    from matchrt.backends.tensorrt.builder import build
    from matchrt.backends.tensorrt.options import resolve_options
    from matchrt.errors import BackendError
    from matchrt.progress import Silent

    path = tmp_path / "slice.onnx"
    job = BuildJob(network="slice", graph=path, options=resolve_options({}))
    onnx.save(model(np.int32), str(path))
    with pytest.raises(BackendError, match=r"node 'slice' \(Slice\).*steps length 2 does not equal starts length 1"):
        build(load_api("tensorrt_rtx"), job, Silent())
    onnx.save(write_slice_steps(model(np.int32)), str(path))
    assert build(load_api("tensorrt_rtx"), job, Silent()).payload
