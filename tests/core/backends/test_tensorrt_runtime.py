"""Sessions against the stand-in binding and a stand-in driver that runs work as late as it may: numbers, order, memory, graphs."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from matchrt.backends.building import BuildJob, Profile
from matchrt.backends.tensorrt import _api
from matchrt.backends.tensorrt.arrays import DeviceTensor
from matchrt.backends.tensorrt.builder import build
from matchrt.backends.tensorrt.cuda import _BRIEF, driver
from matchrt.backends.tensorrt.memory import choose_memory
from matchrt.backends.tensorrt.options import resolve_options
from matchrt.backends.tensorrt.runtime import TensorRtEngine
from matchrt.errors import BackendError, EnvironmentLackError, UsageError
from matchrt.progress import Silent

VERSIONS = ["tensorrt-8.6.1", "tensorrt-10.3.0", "tensorrt-10.16.1.11", "tensorrt-11.4.0.106", "tensorrt_rtx-1.7.1.116"]
LATEST = "tensorrt-11.4.0.106"


class Bench:
    """An engine of the stand-in, and its driver's counters."""

    def __init__(
        self, stand_in: Any, cuda: Any, version: str, graph: Path, shapes: tuple[Profile, ...], **options: Any
    ):
        table = stand_in.tables()[version]
        self.module = stand_in.make(table, cuda)
        self.api = _api.adapt(table["module"], self.module)
        job = BuildJob(network="net", graph=graph, options=resolve_options({}), profiles=shapes)
        self.payload = bytes(build(self.api, job, Silent()).payload)
        self.engine = TensorRtEngine.deserialize(self.api, "net", self.payload, {"memory": "driver", **options})
        self._count, self.cuda = stand_in.counter, cuda

    def count(self, name: str) -> int:
        return int(self._count(self.cuda, name))


SHAPES = (Profile("x", (1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16)),)


@pytest.fixture(params=VERSIONS)
def bench(request: pytest.FixtureRequest, stand_in: Any, fake_cuda: Any, conv_graph: Path) -> Iterator[Bench]:
    yield Bench(stand_in, fake_cuda, request.param, conv_graph, SHAPES)
    gc.collect()


@pytest.fixture
def latest(stand_in: Any, fake_cuda: Any, conv_graph: Path) -> Bench:
    return Bench(stand_in, fake_cuda, LATEST, conv_graph, SHAPES)


def image(seed: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 16, 16)).astype(np.float32)


def expected(graph: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {"x": x})[0]
    return answer


def test_numpy_in_numpy_out_on_every_release(bench: Bench, conv_graph: Path) -> None:
    session = bench.engine.session()
    for seed, batch in ((0, 2), (1, 2), (2, 4), (3, 1), (4, 2), (5, 2), (6, 2)):
        x = image(seed, batch)
        np.testing.assert_allclose(session.run({"x": x})["y"], expected(conv_graph, x), atol=1e-6)
    session.close()
    session.close()
    gc.collect()
    assert bench.count("live_device") == 0
    assert bench.count("live_pinned") == 0
    assert bench.count("live_graphs") == 0
    assert bench.count("live_events") == 0
    with pytest.raises(BackendError, match="closed"):
        session.run({"x": image(0)})


def test_after_warm_up_nothing_is_allocated_and_graphs_replay(latest: Bench, conv_graph: Path) -> None:
    session = latest.engine.session()
    for seed in range(3):
        session.run({"x": image(seed)})
    device, pinned = latest.count("total_device"), latest.count("total_pinned")
    before = latest.count("launches")
    for seed in range(50):
        x = image(seed)
        np.testing.assert_allclose(session.run({"x": x})["y"], expected(conv_graph, x), atol=1e-6)
    assert (latest.count("total_device"), latest.count("total_pinned")) == (device, pinned)
    assert latest.count("captures") == 1
    assert latest.count("launches") - before == 50
    assert session.notes == []


def test_graphs_can_be_switched_off_and_give_equal_results(
    stand_in: Any, fake_cuda: Any, conv_graph: Path, latest: Bench
) -> None:
    plain = Bench(stand_in, fake_cuda, LATEST, conv_graph, SHAPES, cuda_graphs=False)
    one, other = plain.engine.session(), latest.engine.session()
    for seed in range(4):
        np.testing.assert_array_equal(one.run({"x": image(seed)})["y"], other.run({"x": image(seed)})["y"])
    assert latest.count("captures") == 1


def test_a_capture_that_fails_is_noted_and_the_work_still_runs(latest: Bench, stand_in: Any, conv_graph: Path) -> None:
    stand_in.switch(latest.cuda, "fail_capture", 1)
    session = latest.engine.session()
    for seed in range(4):
        x = image(seed)
        np.testing.assert_allclose(session.run({"x": x})["y"], expected(conv_graph, x), atol=1e-6)
    assert len(session.notes) == 1
    assert "without a CUDA graph" in session.notes[0]


def test_outputs_stay_on_the_device_and_do_not_overwrite_each_other(latest: Bench, conv_graph: Path) -> None:
    session = latest.engine.session()
    outputs = [session.run_on_device({"x": image(seed)})["y"] for seed in range(5)]  # nothing was waited for yet
    assert len({o.pointer for o in outputs}) == 5
    for seed, output in enumerate(outputs):
        np.testing.assert_allclose(output.numpy(), expected(conv_graph, image(seed)), atol=1e-6)
    total = latest.count("total_device")
    del outputs, output
    gc.collect()
    again = [session.run_on_device({"x": image(seed)})["y"] for seed in range(5)]
    assert latest.count("total_device") == total
    np.testing.assert_allclose(again[4].numpy(), expected(conv_graph, image(4)), atol=1e-6)


def test_a_device_output_survives_its_session(latest: Bench, conv_graph: Path) -> None:
    session = latest.engine.session()
    output = session.run_on_device({"x": image(7)})["y"]
    session.close()
    del session
    gc.collect()
    np.testing.assert_allclose(output.numpy(), expected(conv_graph, image(7)), atol=1e-6)
    del output
    gc.collect()
    assert latest.count("live_device") == 0


class Theirs:
    """Somebody's device array, with either protocol."""

    def __init__(self, array: np.ndarray, stream: int | None, dlpack: bool = False, strides: Any = None) -> None:
        self.array, self.stream, self.asked = array, stream, []  # type: ignore[var-annotated]
        interface = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "version": 3,
            "strides": strides,
            "stream": stream,
        }
        if not dlpack:
            self.__cuda_array_interface__ = interface

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, stream: int | None = None) -> Any:
        from matchrt.backends.tensorrt import dlpack

        self.asked.append(stream)
        return dlpack.export(self, self.array.ctypes.data, self.array.shape, self.array.dtype, (2, 0))


@pytest.mark.parametrize("dlpack", [False, True])
def test_device_inputs_are_read_in_place(latest: Bench, conv_graph: Path, dlpack: bool) -> None:
    session = latest.engine.session()
    x = image(1)
    theirs = Theirs(x, None, dlpack)
    np.testing.assert_allclose(session.run({"x": theirs})["y"], expected(conv_graph, x), atol=1e-6)
    x[...] = image(2)  # the same memory: read in place, so the new values count
    np.testing.assert_allclose(session.run({"x": theirs})["y"], expected(conv_graph, image(2)), atol=1e-6)
    assert latest.count("live_pinned") == 1  # for the output only: the input was not staged
    if dlpack:
        assert theirs.asked == [driver().thread_stream()] * 2


def test_the_writer_of_an_input_is_waited_for(latest: Bench, conv_graph: Path) -> None:
    """Their stream still has the copy to do that makes the input; nobody synchronises it but the order of streams."""
    cuda, session = driver(), latest.engine.session()
    source, target = image(3), np.zeros((2, 3, 16, 16), np.float32)
    with cuda.current():
        theirs = cuda._make("cuStreamCreate", 1)
        cuda.to_device(target.ctypes.data, source.ctypes.data, source.nbytes, theirs)
    assert not target.any()
    np.testing.assert_allclose(session.run({"x": Theirs(target, theirs)})["y"], expected(conv_graph, source), atol=1e-6)


def test_outputs_wait_in_the_order_of_the_callers_stream(latest: Bench, conv_graph: Path) -> None:
    cuda, session = driver(), latest.engine.session()
    with cuda.current():
        mine = cuda._make("cuStreamCreate", 1)
    x = image(4)
    output = session.run_on_device({"x": x}, stream=mine)["y"]
    assert output.__cuda_array_interface__["stream"] == mine
    back = np.zeros(output.shape, np.float32)
    with cuda.current():
        consumer = cuda._make("cuStreamCreate", 1)
    capsule = output.__dlpack__(stream=consumer)
    with cuda.current():
        cuda.to_host(back.ctypes.data, output.pointer, output.nbytes, consumer)
        cuda.synchronize(consumer)  # runs `mine` first, because the capsule made the consumer wait for it
    np.testing.assert_allclose(back, expected(conv_graph, x), atol=1e-6)
    del capsule


def test_a_call_on_another_stream_waits_for_the_last_one(latest: Bench, conv_graph: Path) -> None:
    """Both share the context and the buffer that inputs are staged in; the first has done nothing yet."""
    cuda, session = driver(), latest.engine.session()
    with cuda.current():
        mine = cuda._make("cuStreamCreate", 1)
    first = session.run_on_device({"x": image(4)}, stream=mine)["y"]
    np.testing.assert_allclose(session.run({"x": image(5)})["y"], expected(conv_graph, image(5)), atol=1e-6)
    np.testing.assert_allclose(first.numpy(), expected(conv_graph, image(4)), atol=1e-6)


def test_device_outputs_feed_the_next_session_without_the_host(latest: Bench, conv_graph: Path) -> None:
    first, second = latest.engine.session(), latest.engine.session()
    output: DeviceTensor = first.run_on_device({"x": image(1)})["y"]
    with pytest.raises(BackendError, match=r"takes 'x' of shape \[1, 3, 16, 16\] to \[4, 3, 16, 16\], got \[2, 8"):
        second.run_on_device({"x": output})
    fits = Theirs(image(6), None)
    pinned = latest.count("total_pinned")
    second.run_on_device({"x": fits})
    assert latest.count("total_pinned") == pinned


def test_wrong_inputs_are_refused_by_name(latest: Bench) -> None:
    session = latest.engine.session()
    with pytest.raises(BackendError, match="lacks input 'x'"):
        session.run({})
    with pytest.raises(BackendError, match="float64, the engine takes float32"):
        session.run({"x": image(0).astype(np.float64)})
    with pytest.raises(BackendError, match=r"--batch|takes 'x'"):
        session.run({"x": image(0, 5)})
    with pytest.raises(BackendError, match="contiguous"):
        session.run({"x": Theirs(image(0), None, strides=(4, 4, 4, 4))})
    with pytest.raises(BackendError, match="is float16, not float32"):
        session.run({"x": Theirs(image(0).astype(np.float16), None)})
    with pytest.raises(BackendError, match="neither a numpy array nor"):
        session.run({"x": type("Odd", (), {"__dlpack_device__": lambda self: (2, 0)})()})


def test_two_threads_have_contexts_and_streams_of_their_own(bench: Bench, conv_graph: Path) -> None:
    streams, failures = [], []

    def work(seed: int) -> None:
        try:
            session = bench.engine.session()
            streams.append(driver().thread_stream())
            for i in range(10):
                x = image(seed + i)
                np.testing.assert_allclose(session.run({"x": x})["y"], expected(conv_graph, x), atol=1e-6)
            session.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(set(streams)) == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_networks_that_run_in_turn_share_the_memory_they_work_in(
    stand_in: Any, fake_cuda: Any, conv_graph: Path, version: str
) -> None:
    """Two engines on one thread have one piece, whichever release; another stream and another thread have another."""
    first, second = (Bench(stand_in, fake_cuda, version, conv_graph, SHAPES) for _ in range(2))
    sharing = version != "tensorrt_rtx-1.7.1.116"
    assert first.engine.scratch_bytes == (stand_in.SCRATCH if sharing else 0)
    sessions = [first.engine.session(), second.engine.session()]
    x = image(1)
    for _ in range(4):
        for session in sessions:
            np.testing.assert_allclose(session.run({"x": x})["y"], expected(conv_graph, x), atol=1e-6)
    places = [s._scratch_pointer for s in sessions]
    assert (places[0] == places[1] != 0) if sharing else places == [0, 0]
    assert first.count("captures") == 2
    assert (first.module.world.disturbed, second.module.world.disturbed) == (0, 0)
    live = first.count("live_device")
    for session in sessions:
        session.close()
    gc.collect()
    # One input and one output of each, and the memory that both worked in.
    assert live - first.count("live_device") == 4 + sharing


def test_two_threads_do_not_work_in_the_same_memory(latest: Bench) -> None:
    """On one stream of a caller too, which orders whole runs of a thread but not two threads' kernels."""
    with latest.engine.cuda.current():
        stream = latest.engine.cuda.thread_stream()
    places: dict[str, int] = {}
    alive = threading.Barrier(2)

    def work(name: str) -> None:
        session = latest.engine.session()
        for seed in range(5):
            session.run({"x": image(seed)}, stream)
        places[name] = session._scratch_pointer
        alive.wait(10)
        session.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(places.values())) == 2
    assert latest.module.world.disturbed == 0


def test_shared_memory_grows_and_old_graphs_are_not_replayed_in_it(
    latest: Bench, stand_in: Any, conv_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = latest.engine.session()
    for seed in range(3):
        small.run({"x": image(seed)})
    before, captures = small._scratch_pointer, latest.count("captures")
    large = Bench(stand_in, latest.cuda, LATEST, conv_graph, SHAPES)
    large.engine.scratch_bytes = 3 * stand_in.SCRATCH
    session = large.engine.session()
    for seed in range(3):
        x = image(seed)
        np.testing.assert_allclose(session.run({"x": x})["y"], expected(conv_graph, x), atol=1e-6)
        np.testing.assert_allclose(small.run({"x": x})["y"], expected(conv_graph, x), atol=1e-6)
    assert small._scratch_pointer == session._scratch_pointer
    assert small._scratch_pointer != before or latest.count("captures") == captures + 1
    device = latest.count("total_device")
    small.run({"x": image(9)})
    session.run({"x": image(9)})
    assert latest.count("total_device") == device


def test_memory_of_its_own_can_be_asked_for(stand_in: Any, fake_cuda: Any, conv_graph: Path) -> None:
    bench = Bench(stand_in, fake_cuda, "tensorrt-8.6.1", conv_graph, SHAPES, shared_scratch="false", cuda_graphs="off")
    session = bench.engine.session()
    x = image(3)
    np.testing.assert_allclose(session.run({"x": x})["y"], expected(conv_graph, x), atol=1e-6)
    assert session._scratch_pointer == 0
    session.run({"x": x})
    session.run({"x": x})
    assert bench.count("captures") == 0  # options come as text from the command line
    with pytest.raises(UsageError, match="run option cuda_graphs: 'maybe' is not true or false"):
        Bench(stand_in, fake_cuda, "tensorrt-8.6.1", conv_graph, SHAPES, cuda_graphs="maybe")


def test_an_engine_without_shared_profiles_refuses_a_second_session(
    stand_in: Any, fake_cuda: Any, conv_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_api.TrtApi, "has", lambda self, name: name != "profile-sharing" and name in self.caps)
    alone = Bench(stand_in, fake_cuda, "tensorrt-8.6.1", conv_graph, SHAPES)
    first = alone.engine.session()
    first.run({"x": image(0)})
    with pytest.raises(BackendError, match="no profile left for another session") as caught:
        alone.engine.session()
    assert "matchrt build" in caught.value.hint


@pytest.mark.parametrize(("version", "inside"), [("tensorrt-8.6.1", "int32"), (LATEST, "int64")])
def test_int64_inputs_become_what_the_release_has(
    stand_in: Any, fake_cuda: Any, save_graph: Any, version: str, inside: str
) -> None:
    nodes = [helper.make_node("Add", ["i", "one"], ["j"], name="add")]
    ints = (TensorProto.INT64, [4])
    graph = save_graph(nodes, {"i": ints}, {"j": ints}, {"one": np.array([1], np.int64)}, "ints")
    bench = Bench(stand_in, fake_cuda, version, graph, ())
    session = bench.engine.session()
    output = session.run({"i": np.array([1, 2, 3, -4], np.int64)})["j"]
    assert output.tolist() == [2, 3, 4, -3]
    assert output.dtype == inside
    if inside == "int32":
        with pytest.raises(BackendError, match="do not fit into int32"):
            session.run({"i": np.array([1, 2, 3, 1 << 40], np.int64)})


def test_out_of_memory_is_an_error_that_names_the_call(latest: Bench, stand_in: Any) -> None:
    session = latest.engine.session()
    stand_in.switch(latest.cuda, "fail_alloc", 1)
    with pytest.raises(BackendError, match=r"cuMemAlloc_v2 failed with CUDA_ERROR_OUT_OF_MEMORY \(2\)"):
        session.run({"x": image(0)})


def test_an_engine_of_another_release_is_refused_with_the_reason(latest: Bench, stand_in: Any, fake_cuda: Any) -> None:
    table = stand_in.tables()["tensorrt-10.3.0"]
    other = _api.adapt("tensorrt", stand_in.make(table, fake_cuda))
    with pytest.raises(BackendError, match="Version tag does not match"):
        TensorRtEngine.deserialize(other, "net", latest.payload, {})
    with pytest.raises(BackendError, match="magicTag"):
        TensorRtEngine.deserialize(latest.api, "net", b"not an engine", {})


def test_a_context_of_somebody_else_is_left_as_it_was(latest: Bench, conv_graph: Path) -> None:
    """As pycuda's autoinit leaves one on the thread: our calls go to the primary context, and theirs is current afterwards."""
    import ctypes

    foreign, found = ctypes.c_void_p(0x1234), ctypes.c_void_p()
    latest.cuda.cuCtxPushCurrent_v2(foreign)
    try:
        session = latest.engine.session()
        np.testing.assert_allclose(session.run({"x": image(1)})["y"], expected(conv_graph, image(1)), atol=1e-6)
        latest.cuda.cuCtxGetCurrent(ctypes.byref(found))
        assert found.value == foreign.value
        session.close()
    finally:
        latest.cuda.cuCtxPopCurrent_v2(ctypes.byref(found))


def test_memory_providers_are_named_and_torch_is_never_loaded_for_it(fake_cuda: Any) -> None:
    assert choose_memory(driver()).name in ("driver", "cuda-python", "pycuda")  # torch has no GPU here
    with pytest.raises(EnvironmentLackError, match="no memory provider"):
        choose_memory(driver(), "cupy")
    with pytest.raises(EnvironmentLackError, match="not at hand"):
        choose_memory(driver(), "torch")


def test_what_may_wait_gives_up_pythons_lock_and_what_may_not_keeps_it(fake_cuda: Any) -> None:
    """A call that waits with the lock would stop every thread; a brief one that gives it up queues for it behind every thread."""
    keeps = {n for n, function in driver()._functions.items() if function._flags_ & ctypes_keeps_lock()}
    assert keeps == _BRIEF
    assert not keeps & {"cuStreamSynchronize", "cuEventSynchronize", "cuMemAlloc_v2", "cuMemHostAlloc", "cuGraphLaunch"}


def ctypes_keeps_lock() -> int:
    """The flag of functions that ctypes calls without giving up the interpreter's lock."""
    return int(ctypes.PyDLL(None)._FuncPtr._flags_ & ~ctypes.CDLL(None)._FuncPtr._flags_)
