"""Export one network to ONNX with torch's dynamo exporter; older opsets are lowered from the oldest that it writes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from matchrt.errors import ExportError, UsageError
from matchrt.graph.opset import lower_opset
from matchrt.model import Axis, ExampleInputs, NetworkSpec, Target

OLDEST_OPSET, DYNAMO_OPSET, NEWEST_OPSET = 16, 18, 22
"""GridSample arrives with opset 16. Opset 23 turns attention into an operator that TensorRT-RTX refuses in float32."""


LARGEST_FILE = 1_900_000_000
"""Bytes of weights that an ONNX file holds itself; protobuf's limit for the whole is 2 GiB."""


class _Named(torch.nn.Module):
    """Calls a network and returns its outputs as a flat tuple, whatever container it uses."""

    def __init__(self, network: torch.nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answer = self.network(*tensors)
        return tuple(named_outputs(answer, self._outputs).values())


def named_outputs(answer: Any, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """A network's answer (tensor, tuple or mapping) by output name. Raises `ExportError` where the number differs."""
    if isinstance(answer, Mapping):
        missing = [n for n in names if n not in answer]
        if missing:
            raise ExportError(f"the network returns {sorted(answer)}, which lacks {missing}")
        return {n: answer[n] for n in names}
    values = (answer,) if isinstance(answer, torch.Tensor) else tuple(answer)
    if len(values) != len(names):
        raise ExportError(
            f"the network returns {len(values)} tensors, its specification names {len(names)}: {list(names)}"
        )
    return dict(zip(names, values, strict=True))


def check_opset(opset: int) -> None:
    """Raise `UsageError` for an opset that is not supported."""
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise UsageError(
            f"opset {opset} is not supported; choose {OLDEST_OPSET} to {NEWEST_OPSET}",
            hint="18 suits every current runtime; 16 and 17 suit TensorRT 8.6 and older importers",
        )


def export_network(
    network: torch.nn.Module, spec: NetworkSpec, example: ExampleInputs, target: Target
) -> onnx.ModelProto:
    """The network as an ONNX model of opset `target.opset`, with inputs and outputs named as in `spec`.

    Raises `ExportError` with the exporter's own first line.
    """
    check_opset(target.opset)
    names = [t.name for t in spec.inputs]
    outputs = [t.name for t in spec.outputs]
    lacking = [n for n in names if n not in example.tensors]
    if lacking:
        raise ExportError(f"example_inputs of network {spec.name!r} lacks {', '.join(lacking)}")
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(example.tensors[n])) for n in names)
    module = _Named(network, names, outputs).eval()
    try:
        with _quiet(), torch.no_grad():
            model = _dynamo(module, tensors, names, outputs, example.dynamic, max(target.opset, DYNAMO_OPSET))
        if target.opset < DYNAMO_OPSET:
            model = lower_opset(model, target.opset)
    except ExportError:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(f"network {spec.name!r} cannot be exported at opset {target.opset}: {reason}") from error
    written = {d.domain: d.version for d in model.opset_import}.get("")
    if written != target.opset:
        raise ExportError(f"network {spec.name!r}: asked for opset {target.opset}, the exporter wrote {written}")
    # The oldest file format that holds this opset: older runtimes refuse a newer one, whatever is in it.
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    _name_axes(model, names, example.dynamic)
    return model


def _dynamo(
    module: _Named,
    tensors: tuple[torch.Tensor, ...],
    names: Sequence[str],
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, Axis]],
    opset: int,
) -> onnx.ModelProto:
    dims: dict[str, Any] = {}
    for axes in dynamic.values():
        for axis in axes.values():
            dims.setdefault(axis.name, _dim(axis))
    shapes = tuple({i: dims[a.name] for i, a in dynamic.get(n, {}).items()} for n in names)
    program = torch.onnx.export(
        module,
        tensors,
        dynamo=True,
        opset_version=opset,
        input_names=list(names),
        output_names=list(outputs),
        dynamic_shapes={"tensors": shapes} if any(shapes) else None,
        optimize=True,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _dim(axis: Axis) -> Any:
    low, high = -(-axis.min // axis.divisor), axis.max // axis.divisor
    dim = torch.export.Dim(axis.name if axis.divisor == 1 else f"{axis.name}_units", min=max(low, 1), max=high)
    return dim if axis.divisor == 1 else axis.divisor * dim


def _name_axes(model: onnx.ModelProto, names: Sequence[str], dynamic: Mapping[str, Mapping[int, Axis]]) -> None:
    """Give the dynamic axes of inputs, and the same axes of outputs, the names that the matcher uses."""
    renamed: dict[str, str] = {}
    inputs = {i.name: i for i in model.graph.input}
    for name in names:
        if name not in inputs:
            raise ExportError(f"the exporter dropped input {name!r}: the network does not use it")
        for index, axis in dynamic.get(name, {}).items():
            dim = inputs[name].type.tensor_type.shape.dim[index]
            if not dim.dim_param:
                raise ExportError(
                    f"axis {index} of {name!r} ({axis.name}) was frozen to {dim.dim_value} by the exporter"
                )
            renamed[dim.dim_param] = axis.name
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in renamed:
                dim.dim_param = renamed[dim.dim_param]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' chatter off the terminal; their errors are raised."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "torch._dynamo", "torch.export")]
    levels = [log.level for log in loggers]
    try:
        for log in loggers:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)


def without_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`'s opsets, inputs and outputs alone: what the manifest needs, once the file is written."""
    header = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    header.graph.name = model.graph.name
    header.graph.input.extend(model.graph.input)
    header.graph.output.extend(model.graph.output)
    return header


def save_model(model: onnx.ModelProto, path: Path) -> Path | None:
    """Write `model`; weights go inside below `LARGEST_FILE`, else into one side file, whose path is returned."""
    size = sum(len(t.raw_data) or 4 * len(t.float_data) for t in model.graph.initializer)
    if size < LARGEST_FILE:
        onnx.save_model(model, str(path))
        return None
    side = path.with_name(path.name + ".data")
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=side.name,
        size_threshold=1024,
    )
    return side
