"""A behavioural stand-in for TensorRT's binding, held to a recorded API table.

A module is made from one table: classes have exactly those of the members below that the table lists, everything else raises
AttributeError, reading and writing alike. Enumerations have the table's names and shuffled numbers, so that a stored number would be
found out. Behaviour that the real binding showed: builders that return None and log why, -1 from `add_optimization_profile`, callbacks
whose exceptions are swallowed, one logger, a `Runtime` that is lethal without a GPU. An engine computes with onnxruntime, on addresses,
when its stream gets to it.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
import random
import types
import weakref
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).with_name("data")
SCRATCH = 4096
"""What every engine's context works in, in bytes."""
REFUSED = {"Det": "no importer for this operator"}


class LethalError(BaseException):
    """What would end the process: nothing may catch it by accident."""


def tables() -> dict[str, dict[str, Any]]:
    """The recorded tables by "module-version"."""
    return {p.stem: json.loads(p.read_text()) for p in sorted(DATA.glob("tensorrt*.json"))}


def _held(name: str, cls: type, members: dict[str, Any]) -> type:
    """`cls` with only the public members that the table lists; others can be neither read nor set."""

    def allowed(attribute: str) -> bool:
        return attribute.startswith("_") or attribute in members

    def get(self: Any, attribute: str) -> Any:
        if not allowed(attribute):
            raise AttributeError(f"{name} has no attribute {attribute!r} in this release")
        return object.__getattribute__(self, attribute)

    def put(self: Any, attribute: str, value: Any) -> None:
        if not allowed(attribute):
            raise AttributeError(f"{name} has no attribute {attribute!r} in this release")
        object.__setattr__(self, attribute, value)

    # Members of the table that nothing below implements exist too, as in the real class, but say so when used.
    missing = {m: _missing(name, m) for m in members if not hasattr(cls, m)}
    made = type(name, (cls,), {**missing, "__getattribute__": get, "__setattr__": put, "__module__": "tensorrt"})
    for attribute in dir(cls):
        if not allowed(attribute):
            setattr(made, attribute, _Absent(name, attribute))
    return made


def _missing(name: str, member: str) -> Any:
    def call(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"the stand-in lacks {name}.{member}")

    return call


class _Absent:
    """Hides an inherited member from `hasattr` on the class."""

    def __init__(self, owner: str, name: str) -> None:
        self.text = f"{owner} has no attribute {name!r} in this release"

    def __get__(self, instance: Any, owner: Any) -> Any:
        raise AttributeError(self.text)


def make(table: dict[str, Any], cuda: Any = None, gpu: bool = True) -> Any:
    """A module as the binding of `table`; `cuda` is the stand-in driver library, needed to run engines."""
    module: Any = types.ModuleType(table["module"])
    module.__version__ = table["version"]
    rng = random.Random(table["version"])
    for name, members in table["enums"].items():
        numbers = rng.sample(range(len(members)), len(members))
        setattr(module, name, enum.IntEnum(name, dict(zip(members, numbers, strict=True)), module="tensorrt"))
    world = _World(module, cuda, gpu)
    module.world = world
    severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])
    for name, cls in IMPLEMENTED.items():
        if name in table["classes"]:
            setattr(module, name, _held(name, cls, {**table["classes"][name]}))
            getattr(module, name)._world = world
    module.ILogger._severity = severity
    if "init_libnvinfer_plugins" in table["functions"]:
        module.init_libnvinfer_plugins = lambda logger, namespace: True
    return module


class _World:
    def __init__(self, module: Any, cuda: Any, gpu: bool) -> None:
        self.module, self.cuda, self.gpu = module, cuda, gpu
        self.logger: Any = None
        self.configs: list[Any] = []
        self.networks: list[Any] = []
        self.delay = 0.0
        self.steps = 3
        self.executions = 0
        self.keep: list[Any] = []
        self.disturbed = 0
        """Runs during which somebody else wrote into the memory that they work in."""

    def log(self, severity: str, text: str) -> None:
        if self.logger is not None:
            self.logger.log(self.module.ILogger._severity[severity], text)

    def bit(self, kind: str, name: str) -> int:
        members = getattr(self.module, kind).__members__
        return 1 << members[name] if name in members else 0


class ILogger:
    _world: _World


class IProgressMonitor:
    _world: _World


class IProfiler:
    _world: _World


class Builder:
    _world: _World

    def __init__(self, logger: Any) -> None:
        self._world.logger = self._world.logger or logger

    def create_network(self, flags: int = 0) -> Any:
        world = self._world
        explicit = world.bit("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")
        if explicit and not flags & explicit and world.module.__version__.startswith("8."):
            world.log("ERROR", "networks without an explicit batch cannot be parsed from ONNX")
        network = world.module.INetworkDefinition()
        network._typed = bool(flags & world.bit("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"))
        network._flags = flags
        world.networks.append(network)
        return network

    def create_builder_config(self) -> Any:
        config = self._world.module.IBuilderConfig()
        self._world.configs.append(config)
        return config

    def create_optimization_profile(self) -> Any:
        return self._world.module.IOptimizationProfile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        import time

        world = self._world
        dynamic = [t for t in network._inputs if -1 in t.shape]
        if dynamic and not config._profiles:
            world.log("ERROR", "network has dynamic inputs, but no optimization profile has been defined")
            return None
        monitor = getattr(config, "progress_monitor", None) if hasattr(type(config), "progress_monitor") else None
        for phase in ("Building engine", "Optimizing graph"):
            if monitor is not None and not _swallow(monitor.phase_start, phase, None, world.steps):
                return self._cancelled()
        for phase in ("Optimizing graph", "Building engine"):
            for step in range(world.steps):
                time.sleep(world.delay)
                if monitor is not None and not _swallow(monitor.step_complete, phase, step, answer=True):
                    return self._cancelled()
            if monitor is not None:
                _swallow(monitor.phase_finish, phase)
        if config._timings is not None:
            config._timings._entries |= {layer.name for layer in network._layers}
        return HostMemory(json.dumps(_plan(world, network, config)).encode())

    def _cancelled(self) -> None:
        self._world.log("ERROR", "BuildCanceled: the build was cancelled")


def _swallow(callback: Any, *arguments: Any, answer: bool = False) -> bool:
    try:
        result = callback(*arguments)
    except LethalError:
        raise
    except BaseException as error:  # the binding prints the exception and goes on as if told to cancel
        print(f"swallowed {error!r}")
        return False
    return bool(result) if answer else True


def _plan(world: _World, network: Any, config: Any) -> dict[str, Any]:
    profile = config._profiles[0]._shapes if config._profiles else {}
    return {
        "magic": "stand-in",
        "version": world.module.__version__,
        "onnx": base64.b64encode(network._onnx).decode(),
        "inputs": [[t.name, t.dtype.name, list(t.shape)] for t in network._inputs],
        "outputs": [[t.name, t.dtype.name, list(t.shape)] for t in network._outputs],
        "profile": {n: [list(s) for s in shapes] for n, shapes in profile.items()},
        "layers": [[layer.name, layer._precision] for layer in network._layers],
        "shares_profiles": "PROFILE_SHARING_0806" in config._features,
    }


class HostMemory(bytes):
    """Supports the buffer protocol, as the binding's does."""


class INetworkDefinition:
    _world: _World

    def __init__(self) -> None:
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._layers: list[Any] = []
        self._onnx = b""

    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))
    num_layers = property(lambda self: len(self._layers))

    def get_input(self, index: int) -> Any:
        return self._inputs[index]

    def get_output(self, index: int) -> Any:
        return self._outputs[index]

    def get_layer(self, index: int) -> Any:
        return self._layers[index]


class ITensor:
    _world: _World

    def __init__(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        self._name, self._dtype, self._shape = name, dtype, shape

    name = property(lambda self: self._name)
    dtype = property(lambda self: self._dtype)
    shape = property(lambda self: self._shape)
    is_shape_tensor = property(lambda self: False)


class ILayer:
    _world: _World

    def __init__(self, name: str, outputs: list[Any]) -> None:
        self._name, self._outputs = name, outputs
        self._precision = ""
        self._output_types: dict[int, str] = {}

    name = property(lambda self: self._name)
    num_outputs = property(lambda self: len(self._outputs))

    def get_output(self, index: int) -> Any:
        return self._outputs[index]

    @property
    def precision(self) -> Any:
        return self._precision

    @precision.setter
    def precision(self, value: Any) -> None:
        self._precision = value.name

    def set_output_type(self, index: int, dtype: Any) -> None:
        self._output_types[index] = dtype.name


class OnnxParser:
    _world: _World

    def __init__(self, network: Any, logger: Any) -> None:
        self._network, self._errors = network, []
        self._flags: set[str] = set()

    num_errors = property(lambda self: len(self._errors))

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        import onnx

        loaded = onnx.shape_inference.infer_shapes(onnx.load(model))
        world = self._world
        for index, node in enumerate(loaded.graph.node):
            if node.op_type in REFUSED:
                self._errors.append(world.module.ParserError(index, node))
                return False
        types_ = {v.name: v.type.tensor_type.elem_type for v in (*loaded.graph.value_info, *loaded.graph.output)}
        network = self._network
        network._onnx = loaded.SerializeToString()
        network._inputs = [self._tensor(v) for v in loaded.graph.input]
        network._outputs = [self._tensor(v) for v in loaded.graph.output]
        for node in loaded.graph.node:
            outputs = [
                world.module.ITensor(o, self._dtype(types_.get(o, onnx.TensorProto.FLOAT)), ())
                for o in node.output
                if o
            ]
            network._layers += [world.module.ILayer(node.name, outputs), world.module.ILayer(f"{node.name}_1", outputs)]
        return True

    def _tensor(self, value: Any) -> Any:
        shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)
        return self._world.module.ITensor(value.name, self._dtype(value.type.tensor_type.elem_type), shape)

    def _dtype(self, code: int) -> Any:
        import onnx

        names = {
            "FLOAT": "FLOAT",
            "FLOAT16": "HALF",
            "INT32": "INT32",
            "INT64": "INT64",
            "BOOL": "BOOL",
            "UINT8": "UINT8",
        }
        name = names[onnx.TensorProto.DataType.Name(code)]
        members = self._world.module.DataType.__members__
        return members[name] if name in members else members["INT32"]  # 8.6 has no INT64 and says nothing


class ParserError:
    _world: _World

    def __init__(self, index: int, node: Any) -> None:
        self._index, self._node = index, node

    def desc(self) -> str:
        return REFUSED[self._node.op_type]

    def code(self) -> Any:
        return self._world.module.ErrorCode["UNSUPPORTED_NODE"]

    def node(self) -> int:
        return self._index

    def node_name(self) -> str:
        return str(self._node.name)

    def node_operator(self) -> str:
        return str(self._node.op_type)


class IBuilderConfig:
    _world: _World

    def __init__(self) -> None:
        self._flags = {"TF32"}
        self._profiles: list[Any] = []
        self._timings: Any = None
        self._pools: dict[str, int] = {}
        self._level, self._verbosity, self._monitor = 3, None, None
        self._sources: int | None = None
        self._capabilities: list[str] = []
        # From 10 on contexts share profiles; 8.6 does so on request.
        old = int(self._world.module.__version__.split(".")[0]) < 10 and self._world.module.__name__ == "tensorrt"
        self._features: set[str] = set() if old else {"PROFILE_SHARING_0806"}

    def set_flag(self, flag: Any) -> None:
        assert isinstance(flag, self._world.module.BuilderFlag)
        self._flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag.name)

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        assert isinstance(feature, self._world.module.PreviewFeature)
        (self._features.add if enable else self._features.discard)(feature.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool.name] = pool_size

    def set_tactic_sources(self, tactic_sources: int) -> bool:
        self._sources = tactic_sources
        return True

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        return self._world.module.ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._timings = cache
        return True

    def add_optimization_profile(self, profile: Any) -> int:
        for name, (low, opt, high) in profile._shapes.items():
            if not all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
                self._world.log("ERROR", f"{name}: optimization profiles must satisfy MIN<=OPT<=MAX")
                return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        self._capabilities[index] = compute_capability.name
        return True

    @property
    def num_compute_capabilities(self) -> int:
        return len(self._capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count: int) -> None:
        self._capabilities = [""] * count

    builder_optimization_level = property(
        lambda self: self._level, lambda self, value: object.__setattr__(self, "_level", value)
    )
    profiling_verbosity = property(
        lambda self: self._verbosity, lambda self, value: object.__setattr__(self, "_verbosity", value)
    )
    progress_monitor = property(
        lambda self: self._monitor, lambda self, value: object.__setattr__(self, "_monitor", value)
    )


class ITimingCache:
    _world: _World

    def __init__(self, data: bytes) -> None:
        self._entries: set[str] = set(json.loads(data)) if data else set()

    def serialize(self) -> bytes:
        return HostMemory(json.dumps(sorted(self._entries)).encode())

    def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
        self._entries |= input_cache._entries
        return True


class IOptimizationProfile:
    _world: _World

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[input] = (tuple(min), tuple(opt), tuple(max))


class Runtime:
    _world: _World

    def __init__(self, logger: Any) -> None:
        if not self._world.gpu:
            raise LethalError("a Runtime without a GPU: the process is gone")
        self._world.logger = self._world.logger or logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        try:
            plan = json.loads(bytes(serialized_engine))
        except ValueError:
            self._world.log("ERROR", "Serialization assertion magicTagRead == kMAGIC_TAG failed")
            return None
        if plan["version"] != self._world.module.__version__:
            self._world.log("ERROR", "Version tag does not match")
            return None
        return self._world.module.ICudaEngine(plan)


class ICudaEngine:
    _world: _World

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._io = {n: (kind, d, tuple(s)) for kind in ("inputs", "outputs") for n, d, s in plan[kind]}
        self._contexts: weakref.WeakSet[Any] = weakref.WeakSet()

    num_io_tensors = property(lambda self: len(self._io))

    def get_tensor_name(self, index: int) -> str:
        return list(self._io)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._world.module.TensorIOMode["INPUT" if self._io[name][0] == "inputs" else "OUTPUT"]

    def get_tensor_location(self, name: str) -> Any:
        return self._world.module.TensorLocation["DEVICE"]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._world.module.DataType[self._io[name][1]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._io[name][2]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(s) for s in self._plan["profile"][name]]

    device_memory_size = property(lambda self: SCRATCH)
    device_memory_size_v2 = property(lambda self: SCRATCH)

    def create_execution_context(self, strategy: Any = None) -> Any:
        return self._context(bare=strategy is not None and strategy.name == "USER_MANAGED")

    def create_execution_context_without_device_memory(self) -> Any:
        return self._context(bare=True)

    def _context(self, bare: bool) -> Any:
        taken = bool(self._contexts) and not self._plan["shares_profiles"]
        context = self._world.module.IExecutionContext(self, -1 if taken else 0, bare)
        self._contexts.add(context)
        return context


class IExecutionContext:
    _world: _World

    def __init__(self, engine: Any, profile: int, bare: bool) -> None:
        import onnxruntime

        self._scratch = 0 if bare else None
        self._active = profile
        self._profiler: Any = None
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        graph = base64.b64decode(engine._plan["onnx"])
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._types = {i.name: i.type for i in self._session.get_inputs()}
        self._sizes: dict[str, tuple[int, ...]] = {}

    def set_input_shape(self, name: str, shape: Any) -> bool:
        bounds = self._engine._plan["profile"].get(name)
        shape = tuple(shape)
        if bounds and not all(a <= s <= b for a, s, b in zip(bounds[0], shape, bounds[2], strict=True)):
            return False
        self._shapes[name] = shape
        return True

    active_optimization_profile = property(lambda self: self._active)
    profiler = property(lambda self: self._profiler, lambda self, value: object.__setattr__(self, "_profiler", value))

    device_memory = property(lambda self: self._scratch, lambda self, value: self._work_in(value, SCRATCH))

    def set_device_memory(self, memory: int, size: int) -> None:
        self._work_in(memory, size)

    def _work_in(self, memory: int, size: int) -> None:
        if size < SCRATCH or memory % 256:
            self._world.log("ERROR", "too little device memory, or not aligned")
            return
        object.__setattr__(self, "_scratch", memory)

    def infer_shapes(self) -> list[str]:
        if self._active < 0 and self._engine._plan["profile"]:
            raise LethalError("shapes without a profile: 8.6 crashes the process (seen on an H200)")
        lacking = [n for n, (kind, _, _) in self._engine._io.items() if kind == "inputs" and n not in self._shapes]
        if not lacking:
            feeds = {n: np.zeros(s, self._host_type(n)) for n, s in self._shapes.items()}
            outputs = self._session.run(None, feeds)
            self._sizes = {o.name: v.shape for o, v in zip(self._session.get_outputs(), outputs, strict=True)}
        return lacking

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name) or self._sizes[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine._io

    def execute_async_v3(self, stream_handle: int) -> bool:
        world = self._world
        shapes, addresses, scratch = dict(self._shapes), dict(self._addresses), self._scratch
        if scratch == 0:
            raise LethalError("a run without device memory")

        def compute(_: Any) -> None:
            world.executions += 1
            if scratch:
                ctypes.memset(scratch, world.executions % 256, SCRATCH)
                mark = ctypes.string_at(scratch, SCRATCH)
            feeds = {n: self._at(addresses[n], s, self._type(n)).astype(self._host_type(n)) for n, s in shapes.items()}
            values = self._session.run(None, feeds)
            for output, value in zip(self._session.get_outputs(), values, strict=True):
                self._at(addresses[output.name], value.shape, self._type(output.name))[...] = value
            if scratch and ctypes.string_at(scratch, SCRATCH) != mark:
                world.disturbed += 1

        callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(compute)
        world.keep.append(callback)  # a captured graph may call it for as long as it lives
        done = bool(world.cuda.cuLaunchHostFunc(ctypes.c_void_p(stream_handle), callback, None) == 0)
        if self._profiler is not None:  # the call then waits for the work and reports, layer by layer
            done = done and world.cuda.cuStreamSynchronize(ctypes.c_void_p(stream_handle)) == 0
            for number, (name, _) in enumerate(self._engine._plan["layers"]):
                self._profiler.report_layer_time(name, 0.001 * (number + 1))
        return done

    def _type(self, name: str) -> np.dtype[Any]:
        names = {"FLOAT": "f4", "HALF": "f2", "INT32": "i4", "INT64": "i8", "BOOL": "?", "UINT8": "u1"}
        return np.dtype(names[self._engine._io[name][1]])

    def _host_type(self, name: str) -> np.dtype[Any]:
        names = {"float": "f4", "float16": "f2", "int32": "i4", "int64": "i8", "bool": "?", "uint8": "u1"}
        return np.dtype(names[self._types[name][len("tensor(") : -1]])

    @staticmethod
    def _at(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        count = int(np.prod(shape, dtype=np.int64))
        raw = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)
        return np.frombuffer(raw, dtype).reshape(shape)


IMPLEMENTED: dict[str, type] = {
    c.__name__: c
    for c in (
        ILogger,
        IProgressMonitor,
        IProfiler,
        Builder,
        INetworkDefinition,
        ITensor,
        ILayer,
        OnnxParser,
        ParserError,
        IBuilderConfig,
        ITimingCache,
        IOptimizationProfile,
        Runtime,
        ICudaEngine,
        IExecutionContext,
    )
}


def load_cuda(library: Path) -> Any:
    """The compiled stand-in driver."""
    cuda = ctypes.CDLL(str(library))
    cuda.cuLaunchHostFunc.argtypes = (ctypes.c_void_p, ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.c_void_p)
    return cuda


def counter(cuda: Any, name: str) -> int:
    """A counter of the stand-in driver."""
    return int(ctypes.c_int64.in_dll(cuda, name).value)


def switch(cuda: Any, name: str, value: int) -> None:
    """Set a switch of the stand-in driver."""
    ctypes.c_int.in_dll(cuda, name).value = value
