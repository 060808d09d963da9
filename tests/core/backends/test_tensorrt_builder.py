"""The builder against every recorded release: flags, constraints, progress, cancelling, and errors that say why."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from matchrt.backends.building import BuildJob, Profile
from matchrt.backends.tensorrt import _api, backend
from matchrt.backends.tensorrt.builder import build, merge_timing
from matchrt.backends.tensorrt.options import OPTIONS, resolve_options
from matchrt.errors import BackendError, EnvironmentLackError, UsageError
from matchrt.progress import Silent

RELEASES = ["tensorrt-8.6.1", "tensorrt-10.3.0", "tensorrt-10.16.1.11", "tensorrt-11.4.0.106", "tensorrt_rtx-1.7.1.116"]
SHAPES = (Profile("x", (1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16)),)


def adapted(stand_in: Any, release: str) -> tuple[Any, Any]:
    table = stand_in.tables()[release]
    module = stand_in.make(table)
    return _api.adapt(table["module"], module), module.world


def job(graph: Path, **more: Any) -> BuildJob:
    options: Mapping[str, Any] = resolve_options(more.pop("options", {}))
    return BuildJob(network="net", graph=graph, profiles=more.pop("profiles", SHAPES), options=options, **more)


class Recorder:
    """Records stages; `at` is called at every step."""

    def __init__(self, at: Any = None) -> None:
        self.depth, self.lines, self.at = 0, [], at  # type: ignore[var-annotated]

    def start(self, stage: str, total: int | None) -> None:
        self.lines.append((self.depth, stage))
        self.depth += 1

    def advance(self, steps: int = 1, detail: str = "") -> None:
        if self.at is not None:
            self.at()

    def finish(self) -> None:
        self.depth -= 1


@pytest.mark.parametrize("release", RELEASES)
def test_the_configuration_says_what_was_asked(stand_in: Any, conv_graph: Path, release: str) -> None:
    api, world = adapted(stand_in, release)
    options = {"workspace": 256, "level": 2, "tactic_sources": "none"}
    output = build(api, job(conv_graph, options=options), Silent())
    config = world.configs[0]
    assert "TF32" not in config._flags  # on by default in TensorRT, off by default here
    assert config._pools == {"WORKSPACE": 256 << 20}
    assert (config._level, config._sources) == (2, 0)
    assert config._profiles[0]._shapes == {"x": ((1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))}
    assert [(t.name, t.kind, t.dtype, t.shape) for t in output.io] == [
        ("x", "input", "float32", (-1, 3, 16, 16)),
        ("y", "output", "float32", (-1, 8, 14, 14)),
    ]
    flags = world.networks[0]._flags
    explicit = world.bit("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")
    typed = world.bit("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    assert flags == explicit | typed
    tf32 = build(api, job(conv_graph, options={"tf32": True}), Silent())
    assert tf32.payload
    assert "TF32" in world.configs[1]._flags


@pytest.mark.parametrize("release", RELEASES)
def test_half_precision_is_constraints_before_types_exist(stand_in: Any, conv_graph: Path, release: str) -> None:
    api, world = adapted(stand_in, release)
    output = build(api, job(conv_graph, precision="fp16", kept=("/net/relu",)), Silent())
    layers = dict(json.loads(bytes(output.payload))["layers"])
    flags = world.configs[0]._flags
    if release.startswith("tensorrt-8"):
        assert {"FP16", "OBEY_PRECISION_CONSTRAINTS"} <= flags
        assert layers == {"/net/conv": "", "/net/conv_1": "", "/net/relu": "FLOAT", "/net/relu_1": "FLOAT"}
        assert output.notes == ("2 of 4 layers are constrained to float32",)
        without = build(api, job(conv_graph, precision="fp16", kept=("/net/relu", "/net/norm")), Silent())
        assert without.notes[0] == output.notes[0]
        assert (
            "1 of 2 nodes that keep float32 have no layer of their name and are not constrained, such as /net/norm"
            in without.notes[1]
        )
    else:
        assert "FP16" not in flags
        assert set(layers.values()) == {""}
        assert world.networks[0]._typed


@pytest.mark.parametrize("release", RELEASES)
def test_a_refused_operator_is_named_with_its_reason(stand_in: Any, save_graph: Any, release: str) -> None:
    api, _ = adapted(stand_in, release)
    nodes = [helper.make_node("Det", ["x"], ["y"], name="/gp/det")]
    graph = save_graph(nodes, {"x": (TensorProto.FLOAT, [2, 3, 3])}, {"y": (TensorProto.FLOAT, [2])})
    with pytest.raises(BackendError) as caught:
        build(api, job(graph, profiles=()), Silent())
    assert "no importer for this operator" in str(caught.value)
    assert "UNSUPPORTED_NODE" in str(caught.value)
    assert "node '/gp/det' (Det)" in str(caught.value)  # 8.6 tells only the node's place; the name comes from the graph


def test_missing_and_impossible_shapes_are_told(stand_in: Any, conv_graph: Path) -> None:
    api, _ = adapted(stand_in, "tensorrt-11.4.0.106")
    with pytest.raises(UsageError, match="dynamic input 'x' has no shapes"):
        build(api, job(conv_graph, profiles=()), Silent())
    turned = (Profile("x", (4, 3, 16, 16), (2, 3, 16, 16), (1, 3, 16, 16)),)
    with pytest.raises(BackendError, match="MIN<=OPT<=MAX"):
        build(api, job(conv_graph, profiles=turned), Silent())


def test_targets_only_where_the_release_has_them(stand_in: Any, conv_graph: Path) -> None:
    api, world = adapted(stand_in, "tensorrt_rtx-1.7.1.116")
    build(api, job(conv_graph, targets=("sm89", "sm120")), Silent())
    assert world.configs[0]._capabilities == ["SM89", "SM120"]
    with pytest.raises(BackendError, match=r"no ComputeCapability\.SM90"):
        build(api, job(conv_graph, targets=("sm90",)), Silent())
    other, _ = adapted(stand_in, "tensorrt-10.3.0")
    with pytest.raises(UsageError, match="only for the GPU it runs on"):
        build(other, job(conv_graph, targets=("sm89",)), Silent())


def test_progress_nests_and_is_closed_again(stand_in: Any, conv_graph: Path) -> None:
    api, _ = adapted(stand_in, "tensorrt-11.4.0.106")
    seen = Recorder()
    build(api, job(conv_graph), seen)
    assert seen.lines == [(0, "parse net"), (0, "build net"), (1, "Building engine"), (2, "Optimizing graph")]
    assert seen.depth == 0


def test_an_exception_of_the_progress_comes_out_after_the_build(stand_in: Any, conv_graph: Path) -> None:
    api, _ = adapted(stand_in, "tensorrt-11.4.0.106")

    def fail() -> None:
        raise ZeroDivisionError("in a callback")

    seen = Recorder(fail)
    with pytest.raises(ZeroDivisionError, match="in a callback"):
        build(api, job(conv_graph), seen)
    assert seen.depth == 0


def test_ctrl_c_cancels_the_build_and_comes_out(stand_in: Any, conv_graph: Path) -> None:
    api, world = adapted(stand_in, "tensorrt-11.4.0.106")
    world.delay, world.steps = 0.05, 200  # 20 s, if it were not stopped
    seen = Recorder()
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    begin = time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        build(api, job(conv_graph), seen)
    assert time.perf_counter() - begin < 5
    assert seen.depth == 0
    world.delay = 0.0
    assert build(api, job(conv_graph), Silent()).payload


def test_messages_of_one_build_do_not_reach_the_next(stand_in: Any, conv_graph: Path, save_graph: Any) -> None:
    api, world = adapted(stand_in, "tensorrt-10.16.1.11")
    with pytest.raises(BackendError, match="MIN<=OPT<=MAX"):
        build(api, job(conv_graph, profiles=(Profile("x", (4, 3, 16, 16), (2, 3, 16, 16), (1, 3, 16, 16)),)), Silent())
    world.log("WARNING", "between two builds")
    assert build(api, job(conv_graph), Silent()).messages == ()


def test_timings_are_carried_on_and_merged(stand_in: Any, conv_graph: Path) -> None:
    api, _ = adapted(stand_in, "tensorrt-8.6.1")
    first = build(api, job(conv_graph, timing_cache=b'["from before"]'), Silent()).timing_cache
    assert set(json.loads(first)) == {"from before", "/net/conv", "/net/conv_1", "/net/relu", "/net/relu_1"}
    assert set(json.loads(merge_timing(api, b'["a"]', b'["b"]'))) == {"a", "b"}


def test_no_runtime_is_made_without_a_gpu(stand_in: Any, conv_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's Runtime is lethal without a GPU; `info` and `load` must find out before."""
    table = stand_in.tables()["tensorrt-11.4.0.106"]
    module = stand_in.make(table, gpu=False)
    api = _api.adapt("tensorrt", module)
    monkeypatch.setattr(backend, "load_api", lambda name: api)
    with pytest.raises(stand_in.LethalError):
        module.Runtime(api.logger)
    info = backend.TensorRtBackend().info()
    assert (info.version, info.can_build, info.can_run) == ("11.4.0.106", False, False)
    assert info.reason
    for call in (
        lambda: backend.TensorRtBackend().load("net", b"", (), {}),
        lambda: backend.TensorRtBackend().identity(()),
        lambda: backend.TensorRtBackend().build(job(conv_graph), Silent()),
        lambda: backend.TensorRtRtxBackend().load("net", b"", (), {}),
    ):
        with pytest.raises(EnvironmentLackError):
            call()


def test_a_missing_package_is_a_reason_not_a_crash() -> None:
    info = backend.TensorRtBackend().info()
    assert info.can_build is False
    assert "tensorrt is not installed" in info.reason
    with pytest.raises(EnvironmentLackError, match="not installed") as caught:
        backend.TensorRtBackend().identity(())
    assert "matchrt[tensorrt]" in str(caught.value.hint)


def test_an_old_or_broken_binding_is_refused(stand_in: Any) -> None:
    import types

    with pytest.raises(EnvironmentLackError, match="too old or not complete"):
        _api.adapt("tensorrt", types.ModuleType("tensorrt"))


def test_options_are_checked_by_name_and_range() -> None:
    assert set(resolve_options({})) == set(OPTIONS)
    assert resolve_options({"level": "5", "tf32": "yes", "tactic_sources": "cudnn,CUBLAS"}) | {} == {
        **resolve_options({}),
        "level": 5,
        "tf32": True,
        "tactic_sources": ["CUBLAS", "CUDNN"],
    }
    with pytest.raises(UsageError, match="no build option 'workspce'") as caught:
        resolve_options({"workspce": 1})
    assert caught.value.hint == "did you mean 'workspace'?"
    for bad in ({"level": 6}, {"level": "x"}, {"tf32": "maybe"}, {"workspace": 0}):
        with pytest.raises(UsageError, match="is not"):
            resolve_options(bad)
