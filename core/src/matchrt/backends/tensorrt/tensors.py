"""Inputs and outputs of an engine, as the engine itself declares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from matchrt.backends.tensorrt._api import TrtApi
from matchrt.backends.tensorrt.builder import dtype_name
from matchrt.errors import BackendError

Shape = tuple[int, ...]


@dataclass
class EngineTensor:
    """An input or output of the engine, and what is known of it."""

    name: str
    dtype: np.dtype[Any]
    is_input: bool
    on_host: bool
    """A shape tensor: TensorRT reads it from the host."""
    shape: Shape
    bounds: tuple[Shape, ...] = ()
    """(min, opt, max) of an input."""

    def check(self, network: str, shape: Shape) -> None:
        """Raise `BackendError` with what `network` takes, unless it takes `shape` here."""
        low, high = (self.bounds[0], self.bounds[2]) if self.bounds else (self.shape, self.shape)
        if len(shape) != len(low) or any(not a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
            wanted = list(low) if low == high else f"{list(low)} to {list(high)}"
            raise BackendError(
                f"network {network!r}: this engine takes {self.name!r} of shape {wanted}, got {list(shape)}",
                hint="build one for it with `matchrt build --batch … --shapes …`",
            )


def is_dynamic(engine: Any) -> bool:
    """Whether some input of an `ICudaEngine` has an axis without a fixed size."""
    names = (engine.get_tensor_name(i) for i in range(engine.num_io_tensors))
    return any(-1 in tuple(engine.get_tensor_shape(n)) for n in names)


def engine_tensors(api: TrtApi, engine: Any) -> list[EngineTensor]:
    """Inputs and outputs of an `ICudaEngine`, in its order."""
    inputs, host = api.enum("TensorIOMode", "INPUT"), api.enum("TensorLocation", "HOST")
    tensors = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        is_input = engine.get_tensor_mode(name) == inputs
        on_host = engine.get_tensor_location(name) == host
        shape = tuple(engine.get_tensor_shape(name))
        bounds: tuple[Shape, ...] = ()
        if is_input and not on_host and -1 in shape:
            bounds = tuple(tuple(s) for s in engine.get_tensor_profile_shape(name, 0))
        dtype = np.dtype(dtype_name(engine.get_tensor_dtype(name)))
        tensors.append(EngineTensor(name, dtype, is_input, on_host, shape, bounds))
    return tensors
