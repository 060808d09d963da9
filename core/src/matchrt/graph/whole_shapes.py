"""Write Shape with bounds (opset 15) as Shape and Slice.

TensorRT 8.6's importer overlooks `start` and `end` and returns the whole shape: ranks go wrong behind it, and on some graphs its parser
crashes the process.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from matchrt.graph.edit import Names, all_graphs, attribute
from matchrt.model import GraphPass, Stage

_FAR = 2**31 - 1


def whole_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, changed in place: every Shape returns all sizes, and a Slice takes those that were asked for."""
    names = Names(model)
    for graph in all_graphs(model.graph):
        nodes: list[NodeProto] = []
        for node in graph.node:
            start, end = attribute(node, "start", 0), attribute(node, "end", None)
            if node.op_type != "Shape" or node.domain not in ("", "ai.onnx"):
                nodes.append(node)
                continue
            del node.attribute[:]
            nodes.append(node)
            if start == 0 and end is None:
                continue
            wanted, whole = node.output[0], names.fresh(f"{node.output[0]}_whole")
            node.output[0] = whole
            bounds = []
            for label, value in (("start", start), ("end", _FAR if end is None else end), ("axis", 0), ("step", 1)):
                name = names.fresh(f"{wanted}_{label}")
                graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
                bounds.append(name)
            nodes.append(helper.make_node("Slice", [whole, *bounds], [wanted], name=names.fresh(f"{node.name}_slice")))
        del graph.node[:]
        graph.node.extend(nodes)
    return model


WHOLE_SHAPES = GraphPass(
    name="whole-shapes",
    reason="TensorRT 8 overlooks the bounds of Shape and returns every size",
    run=whole_shapes,
    stage=Stage.PREPARE,
)
