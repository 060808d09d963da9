"""Give dynamic axes fixed sizes, for engines of one shape."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from matchrt.errors import UsageError
from matchrt.graph.edit import copy_model
from matchrt.graph.types import refresh_value_info


def dynamic_axes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the dynamic axes of the graph's inputs, each once."""
    names = (d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim)
    return tuple(dict.fromkeys(n for n in names if n))


def freeze(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """A copy of `model` in which the named axes have fixed sizes; sizes of other axes are worked out anew.

    Raises `UsageError` for a name that no input has, or a size below 1.
    """
    known = dynamic_axes(model)
    for name, size in sizes.items():
        if name not in known:
            raise UsageError(f"no input has a dynamic axis {name!r}", hint=f"there are: {', '.join(known) or 'none'}")
        if size < 1:
            raise UsageError(f"axis {name!r} cannot have size {size}")
    frozen = copy_model(model)
    for value in (*frozen.graph.input, *frozen.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]
    refresh_value_info(frozen)
    _freeze_outputs(frozen)
    return frozen


def _freeze_outputs(model: onnx.ModelProto) -> None:
    """Write sizes of outputs that follow from the frozen ones (an axis `2*height` under a name of its own)."""
    inferred = onnx.shape_inference.infer_shapes(_without_output_shapes(model), data_prop=True)
    found = {o.name: o.type.tensor_type.shape for o in inferred.graph.output}
    for output in model.graph.output:
        dims, inferred_dims = output.type.tensor_type.shape.dim, found[output.name].dim
        if len(dims) != len(inferred_dims):
            continue  # inference does not know it, not even its rank
        for dim, known in zip(dims, inferred_dims, strict=True):
            if known.HasField("dim_value") and not dim.HasField("dim_value"):
                dim.dim_value = known.dim_value


def _without_output_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    from matchrt.graph.types import skeleton

    bare = skeleton(model)
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    return bare
