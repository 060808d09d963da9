"""Build one network: parse, configure, build, and tell why if it fails."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matchrt.backends.building import BuildJob, BuildOutput, IoTensor, Profile
from matchrt.backends.tensorrt._api import Message, Monitor, TrtApi
from matchrt.backends.tensorrt.options import apply_options
from matchrt.errors import BackendError, EnvironmentLackError, UsageError
from matchrt.progress import Progress

_BAD = ("ERROR", "INTERNAL_ERROR")
_HARMLESS = "model has been generated with INT64 weights"
"""TensorRT 8 says so for every graph, since ONNX wants the shapes of Reshape in INT64; what does not fit is told by another warning."""
_one_build = threading.Lock()
"""TensorRT has one logger for a process: builds take turns, so that each gets its own messages."""


def build(api: TrtApi, job: BuildJob, progress: Progress) -> BuildOutput:
    """The serialised engine of `job.graph`.

    The work is done in a thread of its own: Ctrl-C reaches only the calling one, so it never lands in a callback from C++, which would
    swallow it, and the build is asked to stop. Raises `BackendError` with the parser's nodes or the builder's messages,
    `EnvironmentLackError` where the builder does not start, and whatever `progress` raised or Ctrl-C caused, after the build stopped.
    """
    monitor = Monitor(progress)
    result: list[BuildOutput] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result.append(_build(api, job, monitor))
        except BaseException as error:
            failure.append(error)

    interrupted = _wait(threading.Thread(target=work, name=f"build {job.network}"), monitor)
    monitor.close()
    for error in (interrupted, monitor.error, *failure):
        if error is not None:
            raise error
    return result[0]


def _build(api: TrtApi, job: BuildJob, monitor: Monitor) -> BuildOutput:
    with _one_build, api.log.capture() as messages:
        builder = _new_builder(api, messages)
        network = builder.create_network(_creation_flags(api))
        monitor.started(f"parse {job.network}", None)
        parser = _parse(api, network, job, messages)
        monitor.finished(f"parse {job.network}")
        config = builder.create_builder_config()
        apply_options(api, config, job.options)
        notes = _precision(api, network, config, job)
        _profiles(builder, network, config, job, messages)
        _targets(api, config, job)
        if api.has("profile-sharing") and not api.typed:
            # Several contexts with one profile, which is the rule from 10 on: without it a second session has no profile in 8.6.
            config.set_preview_feature(api.enum("PreviewFeature", "PROFILE_SHARING_0806"), True)
        cache = config.create_timing_cache(job.timing_cache)
        if cache is not None:
            config.set_timing_cache(cache, ignore_mismatch=False)
        io = _io(network)
        plan = _run(api, builder, network, config, job, messages, monitor)
        del parser  # the network refers to the parser's copy of the weights until here
        return BuildOutput(
            payload=memoryview(plan),
            io=io,
            messages=tuple(m.text for m in messages if m.severity == "WARNING" and _HARMLESS not in m.text),
            notes=notes,
            timing_cache=bytes(memoryview(cache.serialize())) if cache is not None else b"",
        )


def merge_timing(api: TrtApi, theirs: bytes, fresh: bytes) -> bytes:
    """Both kernel timings in one; `fresh` alone where TensorRT refuses to combine them."""
    with _one_build, api.log.capture() as messages:
        config = _new_builder(api, messages).create_builder_config()
        cache, other = config.create_timing_cache(theirs), config.create_timing_cache(fresh)
        if cache is None or other is None or not cache.combine(other, ignore_mismatch=False):
            return fresh
        return bytes(memoryview(cache.serialize()))


def _new_builder(api: TrtApi, messages: Sequence[Message]) -> Any:
    try:
        return api.module.Builder(api.logger)
    except (TypeError, RuntimeError) as error:  # pybind11: "factory function returned nullptr"
        reason = _reasons(messages) or str(error)
        raise EnvironmentLackError(f"the builder of {api.name} {api.version} does not start: {reason}") from None


def _creation_flags(api: TrtApi) -> int:
    flags = 0
    if api.has("explicit-batch"):
        flags |= 1 << int(api.enum("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"))
    if api.typed:
        flags |= 1 << int(api.enum("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"))
    return flags


def _parse(api: TrtApi, network: Any, job: BuildJob, messages: Sequence[Message]) -> Any:
    parser = api.module.OnnxParser(network, api.logger)
    if api.has("native-instancenorm"):
        parser.set_flag(api.enum("OnnxParserFlag", "NATIVE_INSTANCENORM"))
    if parser.parse_from_file(str(job.graph)):
        return parser
    errors = [_parser_error(api, parser.get_error(i), job.graph) for i in range(parser.num_errors)]
    reasons = "\n  ".join(errors) or _reasons(messages) or "it gives no reason"
    raise BackendError(
        f"{api.name} {api.version} cannot read network {job.network!r}:\n  {reasons}",
        hint="`matchrt build --dry-run` lists what this backend refuses, with remedies",
    )


def _parser_error(api: TrtApi, error: Any, graph: Path) -> str:
    if api.has("parser-nodes"):
        name, operator = error.node_name(), error.node_operator()
    else:
        name, operator = _node_at(graph, error.node())
    text = " ".join(str(error.desc()).split())
    if text in ("", "false"):  # what it says where no importer is registered
        text = "it knows no such operator"
    return f"node {name!r} ({operator}): {text} [{error.code().name}]"


def _node_at(graph: Path, index: int) -> tuple[str, str]:
    """Name and operator of a node by its place, for releases that tell no more."""
    try:
        import onnx

        node = onnx.load(str(graph), load_external_data=False).graph.node[index]
    except (ImportError, IndexError):
        return f"number {index}", "unknown"
    return node.name, node.op_type


def _precision(api: TrtApi, network: Any, config: Any, job: BuildJob) -> tuple[str, ...]:
    """Layer constraints for half precision where types are not part of the graph (TensorRT 8)."""
    if job.precision == "fp32" or api.typed:
        return ()
    if not (api.has("half-flag") and api.has("obey-precision") and api.has("layer-precision")):
        raise BackendError(f"{api.name} {api.version} can neither build typed graphs nor constrain layers")
    config.set_flag(api.enum("BuilderFlag", "FP16"))
    config.set_flag(api.enum("BuilderFlag", "OBEY_PRECISION_CONSTRAINTS"))
    constrained, nameless = constrain_layers(api, network, job.kept)
    notes = (f"{constrained} of {network.num_layers} layers are constrained to float32",)
    if not nameless:
        return notes
    return (
        *notes,
        f"{len(nameless)} of {len(job.kept)} nodes that keep float32 have no layer of their name and are not constrained, such as "
        f"{nameless[0]}: the parser names layers of some operators otherwise, LayerNormalization among them",
    )


def constrain_layers(api: TrtApi, network: Any, kept: Sequence[str]) -> tuple[int, list[str]]:
    """Hold the layers made from the graph nodes `kept` to float32: how many layers that are, and which nodes have none.

    The parser names a layer after its node, and further layers of the node NAME_1, NAME_2, ….
    """
    names, single = frozenset(kept), api.enum("DataType", "FLOAT")
    count, found = 0, set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        stem, _, tail = layer.name.rpartition("_")
        if layer.name not in names and not (tail.isdigit() and stem in names):
            continue
        found.add(layer.name if layer.name in names else stem)
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        if not outputs or any(o is None or o.is_shape_tensor or o.dtype != single for o in outputs):
            continue  # integers, truth values and shapes have no precision to hold
        layer.precision = single
        for i in range(layer.num_outputs):
            layer.set_output_type(i, single)
        count += 1
    return count, [n for n in kept if n not in found]


def _profiles(builder: Any, network: Any, config: Any, job: BuildJob, messages: Sequence[Message]) -> None:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    if all(-1 not in tuple(i.shape) for i in inputs):
        return
    profile = builder.create_optimization_profile()
    by_name: dict[str, Profile] = {p.input: p for p in job.profiles}
    for tensor in inputs:
        if tensor.name not in by_name:
            raise UsageError(
                f"network {job.network!r}: dynamic input {tensor.name!r} has no shapes", hint="give --shapes"
            )
        shapes = by_name[tensor.name]
        profile.set_shape(tensor.name, shapes.min, shapes.opt, shapes.max)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"network {job.network!r}: the shapes are refused: {_reasons(messages) or job.profiles}")


def _targets(api: TrtApi, config: Any, job: BuildJob) -> None:
    if not job.targets:
        return
    if not api.has("compute-capabilities"):
        raise UsageError(f"{api.name} builds only for the GPU it runs on, not for a --target", hint="use tensorrt_rtx")
    config.num_compute_capabilities = len(job.targets)
    for index, name in enumerate(job.targets):
        config.set_compute_capability(api.enum("ComputeCapability", name.upper()), index)


def _io(network: Any) -> tuple[IoTensor, ...]:
    def describe(tensor: Any, kind: str) -> IoTensor:
        return IoTensor(name=tensor.name, kind=kind, dtype=dtype_name(tensor.dtype), shape=tuple(tensor.shape))

    inputs = [describe(network.get_input(i), "input") for i in range(network.num_inputs)]
    return (*inputs, *(describe(network.get_output(i), "output") for i in range(network.num_outputs)))


DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""TensorRT's type names and numpy's."""


def dtype_name(dtype: Any) -> str:
    """numpy's name of a TensorRT data type. Raises `BackendError` for one without."""
    if dtype.name not in DTYPES:
        raise BackendError(f"a tensor of TensorRT type {dtype.name} cannot be exchanged with numpy")
    return DTYPES[dtype.name]


def _run(
    api: TrtApi,
    builder: Any,
    network: Any,
    config: Any,
    job: BuildJob,
    messages: Sequence[Message],
    monitor: Monitor,
) -> Any:
    if monitor.cancelled:
        raise BackendError(f"the build of network {job.network!r} was stopped")
    if api.has("progress"):
        config.progress_monitor = listener = api.monitor(monitor)  # the configuration does not keep it alive
    monitor.started(f"build {job.network}", None)
    plan = builder.build_serialized_network(network, config)
    monitor.finished(f"build {job.network}")
    if api.has("progress"):
        del listener
    if plan is None:
        reasons = _reasons(messages) or "it gives no reason"
        raise BackendError(f"{api.name} {api.version} could not build network {job.network!r}: {reasons}")
    return plan


def _wait(thread: threading.Thread, monitor: Monitor) -> BaseException | None:
    interrupted: BaseException | None = None
    thread.start()
    while thread.is_alive():
        try:
            thread.join(0.5)
        except BaseException as error:
            interrupted = error
            monitor.cancel()
    return interrupted


def _reasons(messages: Sequence[Message]) -> str:
    texts = list(dict.fromkeys(" ".join(m.text.split()) for m in messages if m.severity in _BAD))
    return "\n  ".join(texts[-6:])
