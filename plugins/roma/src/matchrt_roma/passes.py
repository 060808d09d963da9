"""RoMa's own graph passes: tokens of the vision transformer filled up to a multiple of eight, for TensorRT 8 in float32.

An image of 560x560 pixels makes 1600 patches and a class token. TensorRT 8.6.0 builds float32 engines over 1601 tokens that are right
or wrong by 0.2 to 0.4 of the output, without a word, as the timing of kernels falls out: of one graph, some builds are the one and some
the other (receipts `h200-*` in docs/benchmarks). What does not help: filling up the keys of the attention alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from matchrt.graph.attention import Attention, find_attention
from matchrt.graph.edit import Names, View, attribute, copy_model, remove_dead, replace_nodes, sort_nodes
from matchrt.graph.types import Shape, shapes
from matchrt.model import GraphPass, Stage

MULTIPLE = 8
"""Tokens are filled up to a multiple of this."""

FILLER = -3.0e4
"""Added to the logits of tokens that are none: far below any logit, so that their weights are exactly zero."""


def fill_tokens(model: ModelProto) -> ModelProto:
    """The transformer of `model` over a multiple of `MULTIPLE` tokens: patches, the class token, then copies of it that no attention
    looks at. Same function, since the order of tokens means nothing once their positions are added.

    The model itself where it has no such transformer, or one of another form; the linter speaks of it then.
    """
    sizes, found = shapes(model), find_attention(model)
    counts = {sizes.get(a.softmax.output[0], (None,))[-1] for a in found}
    count = counts.pop() if len(counts) == 1 else None
    if not isinstance(count, int) or count % MULTIPLE == 0 or any(a.rank != 4 or a.mask is not None for a in found):
        return model
    changed = copy_model(model)
    worker = _Worker(changed, shapes(changed), count)
    ends = worker.ends()
    if ends is None:
        return model
    worker.lengthen(ends)
    for attention in find_attention(changed):
        worker.mask(attention)
    worker.finish()
    return changed


@dataclass(frozen=True)
class _Ends:
    """Where the tokens are joined, and where the class token is cut off again."""

    joined: NodeProto
    first: str
    patches: str
    cut: NodeProto


class _Worker:
    """Changes `model` in place."""

    def __init__(self, model: ModelProto, sizes: Mapping[str, Shape], count: int) -> None:
        self.model, self.sizes, self.count, self.names = model, sizes, count, Names(model)
        self.view, self.nodes = View(model.graph), list(model.graph.node)
        self.full = count + -count % MULTIPLE

    def ends(self) -> _Ends | None:
        """None where tokens are joined or cut in another way."""
        graph = self.model.graph
        joins = [n for n in graph.node if n.op_type == "Concat" and self._tokens(n.output[0])]
        cuts = [n for n in graph.node if n.op_type == "Slice" and self._drops_first(n)]
        if len(joins) != 1 or len(cuts) != 1 or attribute(joins[0], "axis") not in (1, -2) or len(joins[0].input) != 2:
            return None
        first, patches = joins[0].input
        if self.sizes.get(first, (None, None))[1] != 1:
            return None
        return _Ends(joins[0], first, patches, cuts[0])

    def _tokens(self, name: str) -> bool:
        shape = self.sizes.get(name, ())
        return len(shape) == 3 and shape[1] == self.count

    def _drops_first(self, node: NodeProto) -> bool:
        """Whether a Slice takes all tokens but the first."""
        values = [self.view.array(n) for n in node.input[1:]]
        if not self._tokens(node.input[0]) or len(values) < 3 or any(v is None or v.size != 1 for v in values):
            return False
        start, end, axis, step = [int(v.reshape(-1)[0]) for v in values if v is not None] + [1] * (4 - len(values))
        return start == 1 and end >= self.count and axis in (1, -2) and step == 1

    def lengthen(self, ends: _Ends) -> None:
        """Patches first, the class token behind them as often as it takes, and as many tokens in every Reshape between."""
        copies = [ends.first] * (self.full - self.count + 1)
        del ends.joined.input[:]
        ends.joined.input.extend([ends.patches, *copies])
        for node in self.model.graph.node:
            wanted = self.view.array(node.input[1]) if node.op_type == "Reshape" else None
            if wanted is not None and wanted.size > 2 and wanted[1] == self.count:
                longer = wanted.copy()
                longer[1] = self.full
                node.input[1] = self._constant(longer, f"{node.input[1]}_filled")
        kind = onnx.helper.tensor_dtype_to_np_dtype(self.view.constants[ends.cut.input[1]].data_type)
        ends.cut.input[1] = self._constant(np.zeros(1, kind), f"{ends.cut.name}_start")
        ends.cut.input[2] = self._constant(np.asarray([self.count - 1], kind), f"{ends.cut.name}_end")

    def mask(self, attention: Attention) -> None:
        """Take the copies' weight away. New nodes take the name of the product, so that precision rules by module path hold for them."""
        stem = attention.product.name or attention.product.output[0]
        output = self.names.fresh(f"{stem}_filled")
        inputs = [attention.softmax.input[0], self._row()]
        self.nodes.append(onnx.helper.make_node("Add", inputs, [output], output))
        attention.softmax.input[0] = output

    def _row(self) -> str:
        """What is added to the logits, one for all attentions."""
        name = "tokens_filler"
        if all(t.name != name for t in self.model.graph.initializer):
            row = np.zeros((1, 1, 1, self.full), np.float32)
            row[..., self.count :] = FILLER
            self.model.graph.initializer.append(numpy_helper.from_array(row, name))
        return name

    def _constant(self, value: np.ndarray, stem: str) -> str:
        name = self.names.fresh(stem)
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def finish(self) -> None:
        """Put new nodes in place and forget the shapes that have changed."""
        graph = self.model.graph
        replace_nodes(graph, self.nodes)
        sort_nodes(graph)
        remove_dead(graph)
        del graph.value_info[:]


FILL_TOKENS = GraphPass(
    name="fill-tokens",
    reason="TensorRT 8.6.0 computes a transformer over an odd number of tokens wrongly in some float32 builds, without a word",
    run=fill_tokens,
    stage=Stage.PREPARE,
    networks=("vit",),
)
