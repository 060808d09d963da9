"""Element types and shapes of every tensor, and a checker that holds each node to its operator's schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from matchrt.graph.edit import attribute, constant_value, opset, subgraphs

FLOAT, HALF, INT64, INT32 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32
UNKNOWN = TensorProto.UNDEFINED
Shape = tuple[int | str | None, ...]

_NAMES = {
    "float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "double": TensorProto.DOUBLE, "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64, "int32": TensorProto.INT32, "int16": TensorProto.INT16, "int8": TensorProto.INT8,
    "uint64": TensorProto.UINT64, "uint32": TensorProto.UINT32, "uint16": TensorProto.UINT16, "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL, "string": TensorProto.STRING,
}  # fmt: skip


@lru_cache(maxsize=1024)
def schema(op_type: str, domain: str, version: int) -> onnx.defs.OpSchema | None:
    """The operator's schema, None for an unknown operator."""
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


@lru_cache(maxsize=4096)
def _slot(op_type: str, domain: str, version: int, index: int, output: bool) -> tuple[str, frozenset[int], bool] | None:
    found = schema(op_type, domain, version)
    if found is None:
        return None
    formal = found.outputs if output else found.inputs
    if not formal:
        return None
    item = formal[min(index, len(formal) - 1)]
    allowed = {c.type_param_str: c.allowed_type_strs for c in found.type_constraints}.get(
        item.type_str, [item.type_str]
    )
    codes = frozenset(_NAMES[t[7:-1]] for t in allowed if t.startswith("tensor(") and t[7:-1] in _NAMES)
    return item.type_str, codes, item.is_homogeneous


def input_slot(node: NodeProto, index: int, version: int) -> tuple[str, frozenset[int], bool] | None:
    """Type variable, allowed element types and homogeneity of an input; None for an unknown operator."""
    return _slot(node.op_type, node.domain, version, index, False)


def same_type(node: NodeProto, index: int, version: int) -> bool:
    """Whether an output of `node` has, by its schema, the type of input `index`."""
    slot = input_slot(node, index, version)
    outputs = (_slot(node.op_type, node.domain, version, i, True) for i in range(len(node.output)))
    return slot is not None and any(o is not None and o[0] == slot[0] for o in outputs)


def output_types(node: NodeProto, inputs: Sequence[int], version: int) -> list[int]:
    """Element types of a node's outputs, from its inputs' and its attributes; `UNKNOWN` where they do not follow.

    Control flow is not looked into: see `infer_types`.
    """
    bound: dict[str, int] = {}
    for i, code in enumerate(inputs):
        slot = input_slot(node, i, version)
        if slot and slot[2] and code != UNKNOWN:
            bound.setdefault(slot[0], code)
    special = _attribute_type(node, bound)
    found: list[int] = []
    for i in range(len(node.output)):
        slot = _slot(node.op_type, node.domain, version, i, True)
        if slot is None:
            found.append(UNKNOWN)
        elif special is not None and (i == 0 or node.op_type == "LayerNormalization") and slot[0] not in bound:
            found.append(special)
        elif slot[0] in bound:
            found.append(bound[slot[0]])
        else:
            found.append(next(iter(slot[1])) if len(slot[1]) == 1 else UNKNOWN)
    return found


def _attribute_type(node: NodeProto, bound: Mapping[str, int]) -> int | None:
    if node.op_type == "Cast":
        return int(attribute(node, "to"))
    if node.op_type == "Constant":
        value = constant_value(node)
        return None if value is None else value.data_type
    if node.op_type == "ConstantOfShape":
        value = attribute(node, "value")
        return FLOAT if value is None else value.data_type
    if node.op_type == "EyeLike":
        return int(attribute(node, "dtype", bound.get("T1", FLOAT)))
    if node.op_type == "LayerNormalization":
        return int(attribute(node, "stash_type", FLOAT))
    if node.op_type in ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"):
        return int(attribute(node, "dtype", bound.get("T1", FLOAT)))
    return None


class TypeTable:
    """Element types of the tensors that one graph sees: its own and, through `parent`, those around it."""

    def __init__(self, graph: GraphProto, version: int, parent: TypeTable | None = None) -> None:
        self.graph, self.version, self.parent = graph, version, parent
        self.own: dict[str, int] = {t.name: t.data_type for t in graph.initializer}
        self.bodies: dict[int, list[TypeTable]] = {}
        declared = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
        for value in graph.input:
            self.own[value.name] = value.type.tensor_type.elem_type
        for i, node in enumerate(graph.node):
            for name, code in zip(node.output, self._outputs(i, node), strict=True):
                if name:
                    self.own[name] = code if code != UNKNOWN else declared.get(name, UNKNOWN)

    def __getitem__(self, name: str) -> int:
        """The type of `name`; `UNKNOWN` if nothing says it."""
        table: TypeTable | None = self
        while table is not None:
            if name in table.own:
                return table.own[name]
            table = table.parent
        return UNKNOWN

    def inputs(self, node: NodeProto) -> list[int]:
        """Types of a node's inputs (`UNKNOWN` for an absent one)."""
        return [self[n] if n else UNKNOWN for n in node.input]

    def _outputs(self, index: int, node: NodeProto) -> list[int]:
        bodies = [TypeTable(body, self.version, self) for body in subgraphs(node)]
        if not bodies:
            return output_types(node, self.inputs(node), self.version)
        self.bodies[index] = bodies
        results = [bodies[0][o.name] for o in bodies[0].graph.output]
        if node.op_type == "Loop":
            results = results[1:]
        return (results + [UNKNOWN] * len(node.output))[: len(node.output)]


def type_problems(model: ModelProto) -> list[str]:
    """What breaks the schemas: unequal types where one type variable stands, types not allowed, undeclared names.

    Stricter than runtimes that cast silently; equal to what a strongly typed builder enforces.
    """
    version = opset(model)
    return list(_problems(TypeTable(model.graph, version), version))


def _problems(table: TypeTable, version: int) -> Iterator[str]:
    for i, node in enumerate(table.graph.node):
        where = f"{node.op_type} {node.name or node.output[0]!r}"
        bound: dict[str, tuple[int, str]] = {}
        for k, name in enumerate(node.input):
            slot = input_slot(node, k, version) if name else None
            if not name or slot is None:
                continue
            code = table[name]
            if code == UNKNOWN:
                yield f"{where}: the type of input {name!r} is not known"
            elif slot[1] and code not in slot[1]:
                yield f"{where}: input {name!r} is {_text(code)}, which {node.op_type} does not take"
            elif slot[2] and bound.setdefault(slot[0], (code, name))[0] != code:
                other = bound[slot[0]]
                yield f"{where}: {other[1]!r} is {_text(other[0])} but {name!r} is {_text(code)}"
        for body in table.bodies.get(i, []):
            yield from _problems(body, version)
    for output in table.graph.output:
        declared = output.type.tensor_type.elem_type
        if declared not in (UNKNOWN, table[output.name]):
            yield f"output {output.name!r} is declared {_text(declared)} and computed {_text(table[output.name])}"


def _text(code: int) -> str:
    return str(TensorProto.DataType.Name(code)).lower()


def shapes(model: ModelProto) -> dict[str, Shape]:
    """Shapes of the main graph's tensors as far as they are known: sizes, names of dynamic axes, None.

    Large weights are replaced by inputs meanwhile, so that a model of gigabytes is not copied.
    """
    small = skeleton(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(small, data_prop=True)
    except onnx.shape_inference.InferenceError:  # an operator of an unknown set: what is declared remains
        inferred = small
    found: dict[str, Shape] = {t.name: tuple(t.dims) for t in model.graph.initializer}
    graph = inferred.graph
    for value in (*graph.value_info, *graph.output, *graph.input):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            found[value.name] = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in dims)
    return found


def skeleton(model: ModelProto, limit: int = 1024) -> ModelProto:
    """The model with initialisers above `limit` elements as inputs of the same type and shape: small, same inference."""
    small = ModelProto()
    small.ir_version = model.ir_version
    small.opset_import.extend(model.opset_import)
    small.functions.extend(model.functions)
    graph = small.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    inputs = {i.name for i in graph.input}
    for tensor in model.graph.initializer:
        count = 1
        for d in tensor.dims:
            count *= d
        if count <= limit:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return small


def refresh_value_info(model: ModelProto) -> None:
    """Replace stored tensor types and shapes by freshly inferred ones, in the main graph."""
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(skeleton(model), data_prop=True)
    own = {v.name for v in (*model.graph.input, *model.graph.output)}
    model.graph.value_info.extend(v for v in inferred.graph.value_info if v.name not in own)
