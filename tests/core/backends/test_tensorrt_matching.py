"""A whole matcher over the stand-ins: build, cache, sessions, tensors handed over on the device, results equal to onnxruntime's."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import matchrt
from matchrt.backends import cuda_probe
from matchrt.backends.tensorrt import backend
from matchrt.backends.tensorrt.arrays import DeviceTensor
from matchrt.backends.tensorrt.cuda import CudaError, Driver, driver
from matchrt.backends.tensorrt.runtime import TensorRtSession
from matchrt.bundle import read_bundle
from matchrt.engines import CorruptEngineError, EngineCache
from matchrt.engines import build as build_module
from matchrt.engines.profiles import Range
from matchrt.errors import BackendError, EnvironmentLackError, UsageError
from matchrt.images.read import read_image
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.runtime.steps import run_steps
from matchrt.workers.timing import STAGES, BundleRun, measure

IMAGES = [np.random.default_rng(s).integers(0, 255, (90, 120), np.uint8) for s in (1, 2)]


def tensors(matcher: matchrt.Matcher, wanted: Any = ()) -> dict[str, np.ndarray]:
    """Everything that the steps make for one pair."""
    first, second = (read_image(i) for i in IMAGES)
    inputs, _ = matcher.preprocess(first, second, matcher.settings)
    return run_steps(matcher.manifest, matcher.sessions(), inputs, wanted)


def test_the_same_tensors_as_onnxruntime(tensorrt: Any, fixed_bundle: Path) -> None:
    with (
        matchrt.load(fixed_bundle) as reference,
        matchrt.load(fixed_bundle, backend="tensorrt", options={"memory": "driver"}) as matcher,
    ):
        wanted, got = tensors(reference), tensors(matcher)
        assert set(got) == set(wanted)
        for name, value in wanted.items():
            assert got[name].dtype == value.dtype, name
            np.testing.assert_allclose(got[name], value, atol=1e-5, err_msg=name)
        assert len(matcher(*IMAGES)) == len(reference(*IMAGES))
        assert matcher(*IMAGES).backend == "tensorrt"


def test_descriptors_never_come_to_the_host(tensorrt: Any, fixed_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matcher reads six tensors; the extractor's descriptors and scores stay where they are."""
    copied: list[tuple[int, ...]] = []
    numpy_of = DeviceTensor.numpy_of
    waits: list[int] = []
    monkeypatch.setattr(DeviceTensor, "numpy_of", lambda t: copied.extend(x.shape for x in t) or numpy_of(t))
    fed: list[set[type]] = []
    run = TensorRtSession.run_on_device

    def spy(self: Any, inputs: Any, stream: int | None = None) -> Any:
        fed.append({type(v) for n, v in inputs.items() if not n.startswith("size")})
        return run(self, inputs, stream)

    monkeypatch.setattr(TensorRtSession, "run_on_device", spy)
    with matchrt.load(fixed_bundle, backend="tensorrt", options={"memory": "driver"}) as matcher:
        matcher(*IMAGES)
        outputs = matcher._hooks.matcher.outputs
        synchronize = Driver.synchronize
        monkeypatch.setattr(Driver, "synchronize", lambda self, s: waits.append(s) or synchronize(self, s))
        space = tensors(matcher, outputs)
    assert len(waits) == 1, "results come to the host together"
    assert fed[:3] == [{np.ndarray}, {np.ndarray}, {DeviceTensor}]
    assert len(copied) == 2 * len(outputs)
    assert not any(shape[-1] == 64 and len(shape) == 3 for shape in copied), "descriptors (1, 64, 64) were copied"
    assert "descriptors0" not in space
    assert {*outputs} <= set(space)


def test_a_second_load_builds_nothing_and_needs_no_onnx(
    tensorrt: Any, fixed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matchrt.load(fixed_bundle, backend="tensorrt", options={"memory": "driver"}).close()
    built = len(tensorrt.world.configs)
    monkeypatch.setattr("matchrt.engines.prepared.prepare_network", None)
    with matchrt.load(fixed_bundle, backend="tensorrt", options={"memory": "driver"}) as matcher:
        matcher(*IMAGES)
    assert len(tensorrt.world.configs) == built


def test_half_precision_is_another_engine(tensorrt: Any, fixed_bundle: Path) -> None:
    with matchrt.load(fixed_bundle, backend="tensorrt", precision="fp16", options={"memory": "driver"}) as matcher:
        assert matcher(*IMAGES).precision == "fp16"
    entries = list(EngineCache().entries())
    assert {e.spec.precision for e in entries} == {"fp16"}
    old = tensorrt.__version__.startswith("8")
    notes = [any("constrained to float32" in n for n in e.record["prepared"]["notes"]) for e in entries]
    assert notes == [old, old]


def test_a_changed_engine_is_built_anew_not_loaded(tensorrt: Any, fixed_bundle: Path) -> None:
    matchrt.load(fixed_bundle, backend="tensorrt", options={"memory": "driver"}).close()
    cache = EngineCache()
    for key in cache.committed():
        data = bytearray(cache.engine_path(key).read_bytes())
        data[len(data) // 2] ^= 1
        cache.engine_path(key).write_bytes(data)
    with matchrt.load(fixed_bundle, backend="tensorrt", options={"memory": "driver"}) as matcher:
        matcher(*IMAGES)
    assert len(list((cache.root / "quarantine").glob("*.engine"))) == 2


def test_a_changed_engine_with_shapes_of_its_own_is_not_replaced_by_another(tensorrt: Any, fixed_bundle: Path) -> None:
    bundle, hooks = (
        read_bundle(fixed_bundle),
        MatcherHooks(get_plugins(), get_plugins().matcher("superpoint-lightglue")),
    )
    request = build_module.BuildRequest(batch=Range(1, 1, 1))
    cache = EngineCache()
    for made in build_module.build_engines(bundle, hooks, backend.TensorRtBackend(), request, cache):
        cache.engine_path(made.entry.key).write_bytes(b"something else")
    with pytest.raises(CorruptEngineError, match="was changed") as caught:
        matchrt.load(fixed_bundle, backend="tensorrt", options={"memory": "driver"})
    assert "matchrt build" in str(caught.value.hint)


def test_engines_of_two_pairs_take_one_and_three(
    tensorrt: Any, fixed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`matchrt build --batch 2`: what does not fill an engine's batch is filled up, and what exceeds it is cut."""
    bundle, hooks = (
        read_bundle(fixed_bundle),
        MatcherHooks(get_plugins(), get_plugins().matcher("superpoint-lightglue")),
    )
    build_module.build_engines(
        bundle, hooks, backend.TensorRtBackend(), build_module.BuildRequest(batch=Range(2, 2, 2)), EngineCache()
    )
    first, second = IMAGES
    pairs = [(first, second), (second, first), (first, first)]
    with (
        matchrt.load(fixed_bundle) as reference,
        matchrt.load(fixed_bundle, backend="tensorrt", options={"memory": "driver"}) as matcher,
    ):
        assert {s.batch_bounds[n] for s in matcher.sessions().values() for n in s.batch_bounds} == {(2, 2)}
        sizes: list[int] = []
        run = TensorRtSession.run_on_device
        monkeypatch.setattr(
            TensorRtSession,
            "run_on_device",
            lambda self, i, stream=None: sizes.append(next(iter(i.values())).shape[0]) or run(self, i, stream),
        )
        alone, together = matcher(*pairs[0]), list(matcher.match_many(pairs, batch_size=3))
        expected = [reference(*p) for p in pairs]
    assert sizes == [2] * 9
    for got, wanted in zip([alone, *together], [expected[0], *expected], strict=True):
        for a, b in ((got.all_keypoints0, wanted.all_keypoints0), (got.all_keypoints1, wanted.all_keypoints1)):
            assert a is not None
            assert b is not None
            assert len(a) > 20
            np.testing.assert_allclose(a, b, atol=1e-4)
    first_points, second_points = (m.all_keypoints0 for m in expected[:2])
    assert not np.array_equal(first_points, second_points), "entries could be swapped unseen"


def test_nothing_on_the_device_is_left(tensorrt: Any, fixed_bundle: Path, stand_in: Any, fake_cuda: Any) -> None:
    matcher = matchrt.load(fixed_bundle, backend="tensorrt", options={"memory": "driver"})
    for _ in range(4):
        matcher(*IMAGES)
    for session in matcher.sessions().values():
        session.close()
    matcher.close()
    gc.collect()
    counters = {n: stand_in.counter(fake_cuda, n) for n in ("live_device", "live_pinned", "live_events", "live_graphs")}
    assert counters == dict.fromkeys(counters, 0)


def test_without_a_gpu_nothing_is_built_first(fixed_bundle: Path) -> None:
    if cuda_probe.probe().usable:
        pytest.skip("NOT RUN: there is a GPU")
    with pytest.raises(EnvironmentLackError, match="cannot run here"):
        matchrt.load(fixed_bundle, backend="tensorrt_rtx")
    with pytest.raises(EnvironmentLackError, match="not installed"):
        matchrt.load(fixed_bundle, backend="tensorrt")


def test_a_foreign_engine_is_loaded_only_if_its_digest_is_named(
    fixed_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With onnxruntime, whose fp16 graphs come from the same cache: no stand-in is involved."""
    monkeypatch.setenv("MATCHRT_CACHE", str(tmp_path / "cache"))
    matchrt.load(fixed_bundle, precision="fp16").close()
    cache = EngineCache()
    digests = [e.sha256 for e in cache.entries()]
    inodes = {k: cache.engine_path(k).stat().st_ino for k in cache.committed()}
    for key in inodes:
        cache.engine_path(key).chmod(0o666)
    matchrt.load(fixed_bundle, precision="fp16", trust=digests).close()
    assert {k: cache.engine_path(k).stat().st_ino for k in inodes} == inodes
    matchrt.load(fixed_bundle, precision="fp16", trust=["0" * 64]).close()  # not these: put aside and built anew
    assert all(cache.engine_path(k).stat().st_ino != inode for k, inode in inodes.items())
    assert len(list((cache.root / "quarantine").glob("*.engine"))) == 2
    with pytest.raises(UsageError, match="64 hexadecimal"):
        matchrt.load(fixed_bundle, precision="fp16", trust=["yes"])


def test_onnxruntime_runs_half_precision_from_the_cache(
    fixed_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 is what it says: another graph, other numbers, near the float32 ones."""
    monkeypatch.setenv("MATCHRT_CACHE", str(tmp_path / "cache"))
    with matchrt.load(fixed_bundle) as full, matchrt.load(fixed_bundle, precision="fp16") as half:
        a, b = tensors(full), tensors(half)
    assert [e.spec.precision for e in EngineCache().entries()] == ["fp16", "fp16"]
    places = [{tuple(p): row for row, p in enumerate(t["keypoints0"][0].tolist())} for t in (a, b)]
    rows = [(row, places[1][p]) for p, row in places[0].items() if p in places[1]]
    assert len(rows) > 0.8 * len(places[0]), "rounded scores may choose a few other points"
    first, second = (list(r) for r in zip(*rows, strict=True))
    difference = np.abs(a["descriptors0"][0, first] - b["descriptors0"][0, second]).max()
    assert 0 < difference < 0.05
    with pytest.raises(UsageError, match="fp8"):
        matchrt.load(fixed_bundle, precision="fp8")
    assert read_bundle(fixed_bundle).manifest.random_weights


@pytest.mark.parametrize("tensorrt", ["tensorrt-8.6.1"], indirect=True)
def test_the_engine_is_timed_by_events_on_the_device_alone(
    tensorrt: Any, fixed_bundle: Path, stand_in: Any, fake_cuda: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs are uploaded once, outputs stay there, graphs replay, events are given back; the other modes give the same matches."""
    files = [(str(tmp_path / "a.png"), str(tmp_path / "b.png"))]
    for path, image in zip(files[0], IMAGES, strict=True):
        Image.fromarray(image).save(path)
    with matchrt.load(fixed_bundle, backend="tensorrt", options={"memory": "driver"}) as matcher:
        timed = BundleRun(matcher, files, batch=2, workers=2, lanes=2, stream_pairs=4)
        assert timed.clock.kind == "cuda"
        assert all(isinstance(v, DeviceTensor) for v in timed._inputs.values())
        assert all(v.shape[0] == 2 for v in timed._inputs.values())
        measure(timed, "engine", runs=6)
        copies: list[object] = []
        monkeypatch.setattr(Driver, "to_host", lambda *a: copies.append(a))
        monkeypatch.setattr(Driver, "to_device", lambda *a: copies.append(a))
        device, events = (stand_in.counter(fake_cuda, n) for n in ("total_device", "live_events"))
        samples = measure(timed, "engine", runs=5)
        assert copies == []
        monkeypatch.undo()
        assert set(samples) == {"all", "extractor", "matcher"}
        assert all(len(v) == 5 for v in samples.values())
        # The stand-in's clock ticks a millisecond for each piece of work: one launch and one mark for each of the three steps.
        assert samples["all"][-1] == pytest.approx(samples["extractor"][-1] + samples["matcher"][-1])
        assert samples["extractor"][-1] == pytest.approx(2 * samples["matcher"][-1]) != 0
        assert stand_in.counter(fake_cuda, "total_device") == device
        assert stand_in.counter(fake_cuda, "live_events") == events
        for mode in ("host", "stages", "stream"):
            assert measure(timed, mode, runs=1)["all"][0] > 0
        assert set(measure(timed, "stages", runs=1)) == {"all", *STAGES}


def test_nothing_is_allocated_once_warm(tensorrt: Any, fixed_bundle: Path, stand_in: Any, fake_cuda: Any) -> None:
    """Neither by calls, nor by uploads, nor by a stream: page-locked memory takes milliseconds to get."""
    with matchrt.load(fixed_bundle, backend="tensorrt", options={"memory": "driver"}) as matcher:
        session = matcher.sessions()["extractor"]
        array = np.arange(3000, dtype=np.float32).reshape(3, 1000)

        def round_() -> None:
            for smaller in (array, array[:2], array):
                assert np.array_equal(session.to_device(smaller).numpy(), smaller)  # type: ignore[attr-defined]
            matcher(*IMAGES)
            assert len(list(matcher.match_many([IMAGES] * 3, workers=1))) == 3

        for _ in range(3):
            round_()
        before = [stand_in.counter(fake_cuda, n) for n in ("total_device", "total_pinned")]
        round_()
        assert [stand_in.counter(fake_cuda, n) for n in ("total_device", "total_pinned")] == before


def test_results_outlive_their_session(tensorrt: Any, fixed_bundle: Path) -> None:
    with matchrt.load(fixed_bundle, backend="tensorrt", options={"memory": "driver"}) as matcher:
        session: Any = matcher.sessions()["extractor"]
        array = np.arange(40, dtype=np.float32)
        kept = [session.to_device(array + i) for i in range(3)]
        session.close()
        assert [t.numpy()[0] for t in kept] == [0, 1, 2]
        del kept
        gc.collect()


@pytest.mark.parametrize("tensorrt", ["tensorrt-8.6.1"], indirect=True)
def test_layers_are_timed_by_tensorrts_profiler(tensorrt: Any, fixed_bundle: Path, tmp_path: Path) -> None:
    """A network that runs once for each image counts twice, a name that comes twice too. The stand-in's layers take 1, 2, 3 … µs."""
    files = [(str(tmp_path / "a.png"), str(tmp_path / "b.png"))]
    for path, image in zip(files[0], IMAGES, strict=True):
        Image.fromarray(image).save(path)
    options = {"memory": "driver", "layer_times": True}
    with matchrt.load(fixed_bundle, backend="tensorrt", options=options) as matcher:
        timed = BundleRun(matcher, files, batch=1, workers=1, lanes=1, stream_pairs=1)
        found = timed.layers(3)
        assert all(not s._graphs for s in timed.sessions.values())
    assert set(found) == {"extractor", "matcher"}
    for network, steps in (("extractor", 2), ("matcher", 1)):
        wanted: dict[str, float] = {}
        (made,) = [n for n in tensorrt.world.networks if {t.name for t in n._layers} == set(found[network])]
        for number, layer in enumerate(made._layers, start=1):
            wanted[layer.name] = wanted.get(layer.name, 0.0) + steps * number * 1e-6
        assert len(wanted) > 10
        assert list(found[network]) == list(wanted)
        assert found[network] == pytest.approx(wanted)
    with matchrt.load(fixed_bundle, backend="tensorrt", options={"memory": "driver"}) as matcher:
        timed = BundleRun(matcher, files, batch=1, workers=1, lanes=1, stream_pairs=1)
        with pytest.raises(BackendError, match="option layer_times"):
            timed.layers(1)


def test_the_driver_tells_the_memory_in_use(fake_cuda: Any) -> None:
    cuda = driver()
    with cuda.current():
        before = cuda.memory_in_use()
        block = cuda.allocate(64)
        assert cuda.memory_in_use() == before + 4096  # what the stand-in counts for a block
        cuda.free(block)
        first, second = cuda.event(timing=True), cuda.event()
        cuda.record(first, 1)
        cuda.record(second, 1)
        with pytest.raises(CudaError):
            cuda.elapsed(first, second)
        cuda.free_event(first)
        cuda.free_event(second)
