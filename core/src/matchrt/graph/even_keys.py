"""Give attention an even number of keys, for TensorRT 8: over an odd number its kernels are slow and, in float32, wrong without a word."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from matchrt.graph.attention import Attention, find_attention
from matchrt.graph.edit import Names, copy_model, opset, replace_nodes, sort_nodes
from matchrt.graph.types import Shape, shapes
from matchrt.model import GraphPass, Stage

MULTIPLE = 8
"""Keys are filled up to a multiple of this, which also aligns half precision's rows to 16 bytes."""

FILLER = -3.0e4
"""Added to the logits of keys that are none: far below any logit, and finite in float16."""


def even_keys(model: ModelProto) -> ModelProto:
    """A copy in which every attention over an odd number of keys reads zero keys and values more, whose weights are zero; where there is
    none, the model itself. Same function: what is added to each sum is zero.

    Left as it is, and found by the linter: a number of keys that is not fixed, three dimensions, a mask of one column for all keys.
    """
    sizes = shapes(model)
    if opset(model) < 11 or not any(_odd(a, sizes) for a in find_attention(model)):
        return model
    changed = copy_model(model)
    worker = _Worker(changed, sizes)
    for attention in find_attention(changed):
        keys = _odd(attention, sizes)
        if keys:
            worker.fill(attention, keys)
    worker.finish()
    return changed


def _odd(attention: Attention, sizes: Mapping[str, Shape]) -> int:
    """The number of keys where it is odd and they can be filled up, else 0."""
    keys = sizes.get(attention.softmax.output[0], (None,))[-1]
    if attention.rank != 4 or not isinstance(keys, int) or keys % 2 == 0:
        return 0
    if attention.mask is not None and sizes.get(_bias(attention), (None,))[-1] != keys:
        return 0
    return keys


def _bias(attention: Attention) -> str:
    """What the mask's Add adds to the logits."""
    assert attention.mask is not None
    logits = attention.scale if attention.scale is not None else attention.product
    return next(str(n) for n in attention.mask.input if n != logits.output[0])


class _Worker:
    """New nodes take the name of the product that they serve, so that precision rules by module path hold for them too."""

    def __init__(self, model: ModelProto, sizes: Mapping[str, Shape]) -> None:
        self.model, self.sizes, self.names = model, sizes, Names(model)
        self.nodes = list(model.graph.node)
        self.stale: set[str] = set()

    def fill(self, attention: Attention, keys: int) -> None:
        """Pad keys, values and the mask of one attention."""
        stem, more = attention.product.name, -keys % MULTIPLE
        attention.product.input[1] = self._pad(attention.product.input[1], 3, more, 0.0, f"{stem}_keys")
        attention.weighted.input[1] = self._pad(attention.weighted.input[1], 2, more, 0.0, f"{stem}_values")
        if attention.mask is not None:
            bias = _bias(attention)
            position = list(attention.mask.input).index(bias)
            rank = len(self.sizes[bias])
            attention.mask.input[position] = self._pad(bias, rank - 1, more, FILLER, f"{stem}_mask", rank)
        else:
            row = np.zeros((1, 1, 1, keys + more), np.float32)
            row[..., keys:] = FILLER
            output = self.names.fresh(f"{stem}_filled")
            inputs = [attention.softmax.input[0], self._constant(row, f"{stem}_filler")]
            self.nodes.append(onnx.helper.make_node("Add", inputs, [output], output))
            attention.softmax.input[0] = output
        between = (attention.product, attention.scale, attention.mask, attention.softmax)
        self.stale |= {n.output[0] for n in between if n is not None}

    def finish(self) -> None:
        """Put new nodes in place and forget the shapes that have changed."""
        graph = self.model.graph
        replace_nodes(graph, self.nodes)
        sort_nodes(graph)
        kept = [v for v in graph.value_info if v.name not in self.stale]
        del graph.value_info[:]
        graph.value_info.extend(kept)

    def _constant(self, value: np.ndarray, stem: str) -> str:
        name = self.names.fresh(stem)
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _pad(self, name: str, axis: int, more: int, value: float, stem: str, rank: int = 4) -> str:
        pads = np.zeros(2 * rank, np.int64)
        pads[rank + axis] = more
        output = self.names.fresh(stem)
        inputs = [
            name,
            self._constant(pads, f"{stem}_pads"),
            self._constant(np.asarray(value, np.float32), f"{stem}_pad"),
        ]
        self.nodes.append(onnx.helper.make_node("Pad", inputs, [output], output))
        return output


EVEN_KEYS = GraphPass(
    name="even-keys",
    reason="TensorRT 8's attention over an odd number of keys is slow, and wrong in float32",
    run=even_keys,
    stage=Stage.PREPARE,
)
