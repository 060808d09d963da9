"""Run engines: one `TensorRtEngine` shared by threads, one `TensorRtSession` for each thread.

The calls used here have the same names from TensorRT 8.6 to 11 (held by the recorded API tables). Proven without a GPU against a
behavioural stand-in of binding and driver; what ran on a GPU is said by the receipts under `docs/benchmarks`, nothing else is claimed.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from matchrt.backends.clock import Clock, DriverClock
from matchrt.backends.layers import LayerTimes
from matchrt.backends.tensorrt._api import TrtApi
from matchrt.backends.tensorrt.arrays import DeviceTensor, as_dtype, is_device_array, view
from matchrt.backends.tensorrt.cuda import Driver, driver
from matchrt.backends.tensorrt.memory import Block, Harbour, Pool, choose_memory
from matchrt.backends.tensorrt.options import resolve_run_options
from matchrt.backends.tensorrt.scratch import Scratch, can_share, give_scratch, new_context, scratch_bytes, scratch_of
from matchrt.backends.tensorrt.tensors import EngineTensor, Shape, engine_tensors, is_dynamic
from matchrt.errors import BackendError

_MAX_GRAPHS = 8
_MAX_STREAMS = 4
"""Streams that a session keeps memory for."""
Addresses = tuple[tuple[str, int], ...]


class TensorRtEngine:
    """A deserialised engine.

    Options: see `options.RUN_OPTIONS`.
    """

    def __init__(self, api: TrtApi, network: str, runtime: Any, engine: Any, cuda: Driver, options: Mapping[str, Any]):
        self.network = network
        self.api, self.cuda, self.options = api, cuda, resolve_run_options(options)
        self._runtime, self._engine = runtime, engine
        self._lock = threading.Lock()
        self.scratch_bytes = 0
        """What a run needs beside inputs and outputs, if sessions share it (see `scratch`); 0 where each has its own."""
        if can_share(api) and self.options["shared_scratch"]:
            self.scratch_bytes = scratch_bytes(api, engine)

    @classmethod
    def deserialize(cls, api: TrtApi, network: str, payload: bytes, options: Mapping[str, Any]) -> TensorRtEngine:
        """Deserialise bytes of checked origin, where a GPU was found. Raises `BackendError` with TensorRT's reasons."""
        cuda = driver(resolve_run_options(options)["device"])
        with cuda.current(), api.log.capture() as messages:
            runtime = api.module.Runtime(api.logger)
            engine = runtime.deserialize_cuda_engine(payload)
            if engine is None:
                reasons = "; ".join(m.text for m in messages if m.severity in ("ERROR", "INTERNAL_ERROR"))
                raise BackendError(
                    f"{api.name} {api.version} refuses the engine of network {network!r}: {reasons or 'no reason given'}",
                    hint="build it again with `matchrt build`",
                )
        return cls(api, network, runtime, engine, cuda, options)

    @property
    def handle(self) -> Any:
        """The binding's `ICudaEngine`. Raises `BackendError` once closed."""
        if self._engine is None:
            raise BackendError(f"network {self.network!r} is closed")
        return self._engine

    def session(self) -> TensorRtSession:
        """A session for the calling thread, with an execution context of its own."""
        engine = self.handle
        with self._lock, self.cuda.current():
            context = new_context(self.api, engine, shared=self.scratch_bytes > 0)
            if context is None:
                raise BackendError(f"no memory for another session of network {self.network!r}")
            if context.active_optimization_profile < 0 and is_dynamic(
                engine
            ):  # setting a shape would crash the process
                raise BackendError(
                    f"the engine of network {self.network!r} has no profile left for another session",
                    hint="build it again with `matchrt build`: engines are made for several sessions since then",
                )
            return TensorRtSession(self, context)

    def close(self) -> None:
        """Let go of the engine; sessions that are open keep theirs."""
        self._engine = None


@dataclass
class _Stage:
    """Where a numpy input waits for the device: page-locked memory, device memory, and the copy between them."""

    pinned: Block
    device: Block
    event: int


class TensorRtSession:
    """One execution context. Numpy or device arrays in; numpy (`run`) or device arrays (`run_on_device`) out.

    After the first call with a shape nothing is allocated on the device. Where shapes and addresses recur, the work is captured
    once as a CUDA graph and replayed; `notes` tells if that was not possible.
    """

    def __init__(self, owner: TensorRtEngine, context: Any) -> None:
        self.network = owner.network
        self.notes: list[str] = []
        self._memory = choose_memory(owner.cuda, owner.options["memory"])
        self._tensors = engine_tensors(owner.api, owner.handle)
        self._stages: dict[str, _Stage] = {}
        self._host: dict[str, np.ndarray] = {}
        self._pool, self._harbour = Pool(self._memory), Harbour(self._memory)
        self._shapes: dict[str, Shape] = {}
        self._graphs: OrderedDict[Any, int | None] = OrderedDict()
        self._use_graphs = owner.options["cuda_graphs"] and not any(t.on_host for t in self._tensors)
        self._layers: LayerTimes | None = None
        if owner.options["layer_times"]:
            self._layers = LayerTimes()
            self._profiler = owner.api.profiler(self._layers)  # TensorRT keeps no reference
            context.profiler = self._profiler
            self._use_graphs = False  # a replayed graph reports nothing
        self._done = owner.cuda.event()
        self._last_stream = 0
        self._scratches: OrderedDict[Scratch, None] = OrderedDict()
        self._scratch_pointer = 0
        # Last, because a session with a context has all that `close` frees.
        self._owner, self._context, self._cuda = owner, context, owner.cuda

    @property
    def memory_provider(self) -> str:
        """Name of the provider of its memory."""
        return self._memory.name

    def clock(self) -> Clock:
        """For work on the calling thread's own stream."""
        return DriverClock(self._cuda)

    def layer_times(self) -> Mapping[str, float]:
        """See `matchrt.backends.Session`: layers as the engine has them after fusion, between events on the device.

        Raises `BackendError` unless opened with the option `layer_times`.
        """
        if self._layers is None:
            raise BackendError(f"network {self.network!r} was not opened with the option layer_times")
        return self._layers.medians()

    def to_device(self, array: np.ndarray) -> DeviceTensor:
        """A copy of `array` on the device, in the order of the thread's own stream; done when this returns."""
        with self._cuda.current():
            stream = self._cuda.thread_stream()
            block = self._pool.take(max(array.nbytes, 1))
            with self._harbour.room(array.nbytes) as pinned:
                np.copyto(pinned.host(array.shape, array.dtype), array)
                self._cuda.to_device(block.pointer, pinned.pointer, array.nbytes, stream)
                self._cuda.synchronize(stream)
            return self._on_device(block, array.shape, array.dtype, stream)

    @property
    def batch_bounds(self) -> dict[str, tuple[int, int]]:
        """(fewest, most) of the leading axis that the engine was built for, by input."""
        ends = {
            t.name: (t.bounds[0], t.bounds[2]) if t.bounds else (t.shape, t.shape) for t in self._tensors if t.is_input
        }
        return {n: (low[0], high[0]) for n, (low, high) in ends.items() if low}

    def run(self, inputs: Mapping[str, Any], stream: int | None = None) -> dict[str, np.ndarray]:
        """Outputs as numpy arrays, finished. Raises `BackendError`."""
        outputs = self.run_on_device(inputs, stream)
        return dict(zip(outputs, DeviceTensor.numpy_of(list(outputs.values())), strict=True))

    def run_on_device(self, inputs: Mapping[str, Any], stream: int | None = None) -> dict[str, DeviceTensor]:
        """Outputs left on the device; the work is on `stream` (a handle; the thread's own by default) and may not be done yet.

        Inputs may be numpy arrays, or arrays on the device, which are read in place: keep them unchanged until the work is done.
        Raises `BackendError` naming network, input and what it must be.
        """
        if self._context is None:
            raise BackendError(f"the session of network {self.network!r} is closed")
        with self._cuda.current():
            used = self._cuda.thread_stream() if stream is None else int(stream)
            if self._last_stream not in (0, used):
                self._cuda.wait(used, self._done)  # a context runs on one stream at a time
            views = [self._input(t, inputs, used) for t in self._tensors if t.is_input]
            self._use_scratch(used)
            self._set_shapes({name: shape for name, _, shape, _ in views})
            outputs = self._outputs(used)
            addresses = tuple((n, p) for n, p, _, _ in views) + tuple((n, t.pointer) for n, t in outputs.items())
            self._enqueue(addresses, used)
            self._cuda.record(self._done, used)
            self._last_stream = used
            return outputs

    def close(self) -> None:
        """Free what the session holds, after its work is done. It may be called twice."""
        if self._context is None:
            return
        self._context = None
        with self._cuda.current():
            if self._last_stream:
                self._cuda.wait_on_host(self._done)
            for graph in self._graphs.values():
                if graph is not None:
                    self._cuda.free_graph(graph)
            for stage in self._stages.values():
                stage.pinned.free()
                stage.device.free()
                self._cuda.free_event(stage.event)
            self._pool.close()
            self._harbour.close()
            self._scratches.clear()
            self._cuda.free_event(self._done)
        self._graphs.clear()
        self._stages.clear()

    def __del__(self) -> None:
        if getattr(self, "_context", None) is not None and not sys.is_finalizing():
            self.close()

    def _use_scratch(self, stream: int) -> None:
        needed = self._owner.scratch_bytes
        if not needed:
            return
        scratch = scratch_of(self._cuda, stream)
        self._scratches[scratch] = None
        self._scratches.move_to_end(scratch)
        if len(self._scratches) > _MAX_STREAMS:
            self._cuda.wait_on_host(
                self._done
            )  # later work waited for earlier, so that none is under way in the oldest
            self._scratches.popitem(last=False)
        pointer = scratch.reserve(self._memory, needed)
        if pointer != self._scratch_pointer:
            give_scratch(self._owner.api, self._context, pointer, needed)
            self._scratch_pointer = pointer

    def _give_back(self, block: Block) -> None:
        if not self._pool.give_back(block):
            with self._cuda.current():
                block.free()

    def _free(self, block: Block | None) -> None:
        if block is not None:
            self._cuda.synchronize(self._last_stream)
            block.free()

    def _input(self, tensor: EngineTensor, inputs: Mapping[str, Any], stream: int) -> tuple[str, int, Shape, Any]:
        """(name, address, shape, what keeps it alive)."""
        if tensor.name not in inputs:
            raise BackendError(f"network {self.network!r} lacks input {tensor.name!r}")
        value = inputs[tensor.name]
        if is_device_array(value):
            found = view(value, self._cuda, stream)
            if found.dtype != tensor.dtype:
                raise BackendError(
                    f"network {self.network!r}: input {tensor.name!r} is {found.dtype}, not {tensor.dtype}"
                )
            tensor.check(self.network, found.shape)
            return tensor.name, found.pointer, found.shape, found
        array = as_dtype(np.asarray(value), tensor.dtype, f"network {self.network!r}: input {tensor.name!r}")
        tensor.check(self.network, array.shape)
        if tensor.on_host:
            self._host[tensor.name] = np.ascontiguousarray(array)
            return tensor.name, int(self._host[tensor.name].ctypes.data), array.shape, None
        return tensor.name, self._staged(tensor.name, array, stream), array.shape, None

    def _staged(self, name: str, array: np.ndarray, stream: int) -> int:
        """Copy a numpy input to the device through page-locked memory; the address there."""
        stage = self._stages.get(name)
        if stage is not None and stage.pinned.nbytes < array.nbytes:
            self._free(stage.pinned)
            stage.device.free()
            self._cuda.free_event(stage.event)
            stage = None
        if stage is None:
            stage = _Stage(self._memory.pinned(array.nbytes), self._memory.device(array.nbytes), self._cuda.event())
            self._stages[name] = stage
        else:
            self._cuda.wait_on_host(stage.event)  # the last copy from it may still be under way
        np.copyto(stage.pinned.host(array.shape, array.dtype), array)
        self._cuda.to_device(stage.device.pointer, stage.pinned.pointer, array.nbytes, stream)
        self._cuda.record(stage.event, stream)
        return stage.device.pointer

    def _set_shapes(self, shapes: dict[str, Shape]) -> None:
        if shapes == self._shapes:
            return
        self._shapes = {}
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise BackendError(f"network {self.network!r}: TensorRT refuses shape {list(shape)} of input {name!r}")
        for tensor in self._tensors:
            if tensor.is_input and tensor.on_host:
                self._context.set_tensor_address(tensor.name, int(self._host[tensor.name].ctypes.data))
        missing = self._context.infer_shapes()
        if missing:
            raise BackendError(f"network {self.network!r}: TensorRT lacks the shapes of {', '.join(missing)}")
        for tensor in self._tensors:
            if not tensor.is_input:
                tensor.shape = tuple(self._context.get_tensor_shape(tensor.name))
                if any(size < 0 for size in tensor.shape):
                    raise BackendError(
                        f"network {self.network!r}: the shape of output {tensor.name!r} depends on the data",
                        hint="a bundle's outputs have fixed sizes with a count; convert it again",
                    )
        self._shapes = shapes

    def _outputs(self, stream: int) -> dict[str, DeviceTensor]:
        outputs = {}
        for tensor in self._tensors:
            if not tensor.is_input:
                block = self._pool.take(max(math.prod(tensor.shape) * tensor.dtype.itemsize, 1))
                outputs[tensor.name] = self._on_device(block, tensor.shape, tensor.dtype, stream)
        return outputs

    def _on_device(self, block: Block, shape: Shape, dtype: np.dtype[Any], stream: int) -> DeviceTensor:
        return DeviceTensor(self._cuda, block, shape, dtype, stream, self._give_back, self._harbour)

    def _enqueue(self, addresses: Addresses, stream: int) -> None:
        """Run plainly at first sight; capture when shapes and addresses come again; replay from then on."""
        key = (tuple(self._shapes.items()), addresses, self._scratch_pointer)
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            self._cuda.launch(graph, stream)
            return
        for name, address in addresses:
            if not self._context.set_tensor_address(name, address):
                raise BackendError(f"network {self.network!r}: TensorRT refuses the address of {name!r}")
        if self._use_graphs and key in self._graphs:
            graph = self._capture(stream)
            if graph is not None:
                self._graphs[key] = graph
                self._cuda.launch(graph, stream)
                return
        self._execute(stream)
        if self._use_graphs:
            self._remember(key)

    def _execute(self, stream: int) -> None:
        with self._owner.api.log.capture() as messages:
            done = self._context.execute_async_v3(stream)
        if self._layers is not None:
            self._layers.end_run()
        if not done:
            reasons = "; ".join(m.text for m in messages if m.severity in ("ERROR", "INTERNAL_ERROR"))
            shapes = ", ".join(f"{n} {list(s)}" for n, s in self._shapes.items())
            raise BackendError(f"network {self.network!r} failed on {shapes}: {reasons or 'TensorRT gives no reason'}")

    def _remember(self, key: Any) -> None:
        self._graphs[key] = None
        while len(self._graphs) > _MAX_GRAPHS:
            _, old = self._graphs.popitem(last=False)
            if old is not None:
                self._cuda.synchronize(self._last_stream)
                self._cuda.free_graph(old)

    def _capture(self, stream: int) -> int | None:
        """The work as a CUDA graph, or None (with a note) where it cannot be captured."""
        try:
            self._cuda.begin_capture(stream)
            try:
                self._execute(stream)
            except BaseException:
                self._cuda.abort_capture(stream)
                raise
            return self._cuda.end_capture(stream)
        except BackendError as error:
            self._use_graphs = False
            self.notes.append(f"runs without a CUDA graph: {error.message}")
            return None
