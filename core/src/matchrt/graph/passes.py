"""Run graph passes, and the passes that every graph gets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx

from matchrt.errors import ExportError, MatchrtError
from matchrt.graph.scopes import NAME_AFTER_MODULES
from matchrt.graph.types import skeleton
from matchrt.model import GraphPass


def strip_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove what exporters leave behind: stack traces with local paths, doc strings, and names of the producing machine."""
    for field in ("metadata_props", "doc_string"):
        model.ClearField(field)
    _strip_graph(model.graph)
    for function in model.functions:
        function.ClearField("doc_string")
        function.ClearField("metadata_props")
        for node in function.node:
            _strip_node(node)
    return model


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.ClearField("doc_string")
    graph.ClearField("metadata_props")
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: onnx.NodeProto) -> None:
    node.ClearField("doc_string")
    node.ClearField("metadata_props")
    for attribute in node.attribute:
        if attribute.HasField("g"):
            _strip_graph(attribute.g)


STRIP_METADATA = GraphPass(
    name="strip-metadata", reason="stack traces and local paths do not belong into an artefact", run=strip_metadata
)

LARGE = 1 << 24
"""Elements of weights from which the checker sees weights as inputs: it would copy and parse gigabytes after every pass."""

BUILT_IN: tuple[GraphPass, ...] = (NAME_AFTER_MODULES, STRIP_METADATA)


def run_passes(model: onnx.ModelProto, passes: Sequence[GraphPass], network: str) -> onnx.ModelProto:
    """`model` after all passes, each followed by the checker and shape inference. Raises `ExportError` naming the pass."""
    for step in passes:
        try:
            result = step.run(model)
            if not isinstance(result, onnx.ModelProto):
                raise TypeError(f"it returned {type(result).__name__}, not an onnx.ModelProto")
            model = result
            check(model)
        except MatchrtError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ExportError(f"graph pass {step.name!r} failed on network {network!r}: {reason}") from error
    return model


def check(model: onnx.ModelProto) -> None:
    """Validate structure, types and shapes; of large models without the weights' contents. Raises onnx's own error."""
    small = sum(math.prod(t.dims) for t in model.graph.initializer) < LARGE
    onnx.checker.check_model(model if small else skeleton(model), full_check=True)
