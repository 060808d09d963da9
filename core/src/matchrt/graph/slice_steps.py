"""Write out the steps that a Slice leaves out.

TensorRT-RTX 1.7's importer takes a wrong number of default steps where the input's shape is fixed and the starts are INT32 ("Slice
steps length 2 does not equal starts length 1"); explicit steps of one mean the same and pass everywhere.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from matchrt.model import GraphPass, Stage

_WIDTHS = {onnx.TensorProto.INT32: np.int32, onnx.TensorProto.INT64: np.int64}


def write_slice_steps(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with steps of one on every Slice of the main graph whose starts are constant; others are left as they are."""
    starts = {t.name: t for t in model.graph.initializer if t.data_type in _WIDTHS and len(t.dims) == 1}
    made: set[str] = set(starts)
    for node in model.graph.node:
        if node.op_type != "Slice" or len(node.input) not in (3, 4) or node.input[1] not in starts:
            continue
        constant = starts[node.input[1]]
        name = f"slice_steps_{constant.dims[0]}_{constant.data_type}"
        if name not in made:
            ones = np.ones(constant.dims[0], _WIDTHS[constant.data_type])
            model.graph.initializer.append(numpy_helper.from_array(ones, name))
            made.add(name)
        node.input.extend([""] * (4 - len(node.input)) + [name])
    return model


WRITE_SLICE_STEPS = GraphPass(
    name="write-slice-steps",
    reason="TensorRT-RTX 1.7 miscounts the default steps of a Slice with INT32 starts and a fixed input shape",
    run=write_slice_steps,
    stage=Stage.PREPARE,
)
