"""Name nodes after the module they come from, so that rules and messages can speak of `transformers.0.self_attn/MatMul_12`."""

from __future__ import annotations

import ast
import re

import onnx

from matchrt.model import GraphPass

_KEY = "pkg.torch.onnx.name_scopes"
_ROOT = "network"


def name_after_modules(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rename nodes, in place, to MODULE.PATH/NAME; nodes of the network's own forward to /NAME. Others keep their names.

    Reads the scopes that torch's dynamo exporter leaves in the metadata (remove metadata later), and the paths that its TorchScript
    exporter writes into names.
    """
    taken = {n.name for n in model.graph.node}
    for node in model.graph.node:
        scope = _dynamo_scope(node)
        name = f"{scope}/{node.name}" if scope is not None else _torchscript_name(node.name)
        if name != node.name and name not in taken:
            taken.add(name)
            node.name = name
    return model


def _dynamo_scope(node: onnx.NodeProto) -> str | None:
    text = next((p.value for p in node.metadata_props if p.key == _KEY), "")
    if not text or "/" in node.name:
        return None
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    modules = [str(s) for s in scopes[:-1]]
    if _ROOT not in modules:
        return None
    return modules[-1].removeprefix(_ROOT).removeprefix(".")


def _torchscript_name(name: str) -> str:
    """`/network/ffn/ffn.0/MatMul` as `ffn.0/MatMul`: a part that repeats the one before it replaces that."""
    if not re.match(rf"/{_ROOT}/", name):
        return name
    *parts, last = name.split("/")[2:]
    path: list[str] = []
    for part in parts:
        if path and part.startswith(path[-1] + "."):
            path.pop()
        path.append(part)
    return f"{'.'.join(path)}/{last}"


NAME_AFTER_MODULES = GraphPass(
    name="name-after-modules",
    reason="precision rules and error messages go by the module that a node comes from",
    run=name_after_modules,
)
