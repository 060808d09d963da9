"""Building a bundle's engines: profiles, keys, the cache, and processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from matchrt.backends.building import BuildJob, BuildOutput
from matchrt.bundle import Bundle, read_bundle
from matchrt.engines import EngineCache
from matchrt.engines.build import BuildRequest, build_engines, find_built, planned
from matchrt.engines.isolated import build_isolated
from matchrt.engines.profiles import Range, axis_ranges, batch_axes, parse_range, parse_shapes, profiles_of
from matchrt.errors import BackendError, EnvironmentLackError, UsageError
from matchrt.model import PrecisionRule, Target
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.progress import Progress, Silent


@pytest.fixture(scope="module")
def bundle(fixed_bundle: Path) -> Bundle:
    return read_bundle(fixed_bundle)


@pytest.fixture
def hooks() -> MatcherHooks:
    return MatcherHooks(get_plugins(), get_plugins().matcher("superpoint-lightglue"))


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


# ── Shapes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_profiles_come_from_the_bundles_axes(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert sorted(batch_axes(manifest)) == ["images", "pairs"]
    ranges = axis_ranges(manifest)
    image = profiles_of(manifest.network("extractor"), ranges)[0]
    assert (image.input, image.min, image.opt, image.max) == (
        "image",
        (1, 1, 96, 128),
        (2, 1, 96, 128),
        (32, 1, 96, 128),
    )
    fixed = profiles_of(manifest.network("matcher"), axis_ranges(manifest, batch=Range(4, 4, 4)))
    assert all(p.fixed for p in fixed)
    assert fixed[0].min == (4, 64, 2)
    narrowed = axis_ranges(manifest, parse_shapes(["pairs=1:2:3"]), Range(4, 4, 4))
    assert (narrowed["pairs"], narrowed["images"]) == (Range(1, 2, 3), Range(4, 4, 4))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["pairs=17"], "goes from 1 to 16; 17 does not fit"),
        (["pair=1"], "no dynamic axis 'pair'"),
        (["pairs"], "AXIS=N"),
        (["pairs=3:2:1"], "MIN:OPT:MAX"),
        (["pairs=0"], "1 <= MIN"),
        (["pairs=1:2"], "MIN:OPT:MAX"),
        (["pairs=x"], "MIN:OPT:MAX"),
    ],
)
def test_shapes_beyond_the_bundle_are_refused(bundle: Bundle, shapes: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        axis_ranges(bundle.manifest, parse_shapes(shapes))


def test_a_divisor_is_kept(bundle: Bundle) -> None:
    axis = bundle.manifest.axes[0].model_copy(update={"name": "height", "min": 8, "max": 64, "divisor": 8})
    manifest = bundle.manifest.model_copy(update={"axes": (axis,)})
    assert axis_ranges(manifest, {"height": Range(16, 16, 32)})["height"].max == 32
    with pytest.raises(UsageError, match="in steps of 8; 16:20:32 does not fit"):
        axis_ranges(manifest, {"height": Range(16, 20, 32)})


def test_a_range_is_one_number_or_three() -> None:
    assert parse_range("8", "x") == Range(8, 8, 8)
    assert parse_range("1:4:8", "x") == Range(1, 4, 8)


# ── Build and cache ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_build_takes_all_from_the_cache(
    bundle: Bundle, hooks: MatcherHooks, cache: EngineCache, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_engines(bundle, hooks, kit.KitBackend(), BuildRequest(), cache)
    assert [(b.plan.network, b.hit) for b in first] == [("extractor", False), ("matcher", False)]
    record = first[0].entry.record
    assert record["built"]["messages"] == ["careful"]
    assert "by the kit" in record["prepared"]["notes"]
    assert record["origins"][0]["matcher"] == "superpoint-lightglue:mini"
    monkeypatch.setenv("MATCHRT_KIT", "die")  # a build would end this process
    second = build_engines(bundle, hooks, kit.KitBackend(), BuildRequest(), cache)
    assert [b.hit for b in second] == [True, True]
    assert not list(cache.root.glob(".work-*"))


@pytest.mark.parametrize("isolate", [False, True])
def test_a_build_that_cannot_read_its_timings_is_tried_without_them(
    bundle: Bundle,
    hooks: MatcherHooks,
    cache: EngineCache,
    kit: Any,
    job: BuildJob,
    monkeypatch: pytest.MonkeyPatch,
    isolate: bool,
) -> None:
    """Seen with TensorRT 8.6.0 on a GPU; what could not be read is not kept either."""
    name = "kit-1.2.3.4-Kit GPU"
    cache.merge_timing_cache(name, b"broken", b"", lambda a, b: a + b)
    monkeypatch.setenv("MATCHRT_KIT", "timings")
    (built,) = build_engines(bundle, hooks, kit.KitBackend(), BuildRequest(isolate=isolate), cache, only=("matcher",))
    assert any("built again without the timing cache" in n for n in built.entry.record["prepared"]["notes"])
    assert cache.timing_cache(name) == b"t"
    monkeypatch.setenv("MATCHRT_KIT", "fail")  # another reason is not tried again
    cache.merge_timing_cache(name, b"more", b"t", lambda a, b: a + b)
    with pytest.raises(BackendError, match="the kit refuses"):
        build_engines(bundle, hooks, kit.KitBackend(), BuildRequest(isolate=isolate, options={"level": 1}), cache)


def test_what_is_asked_for_reaches_the_key(bundle: Bundle, hooks: MatcherHooks, cache: EngineCache, kit: Any) -> None:
    requests = [
        BuildRequest(),
        BuildRequest(precision="fp16"),
        BuildRequest(batch=Range(1, 1, 1)),
        BuildRequest(options={"level": 4}),
        BuildRequest(shapes={"pairs": Range(1, 1, 2), "images": Range(1, 1, 2)}),
    ]
    keys = []
    for request in requests:
        with planned(bundle, hooks, kit.KitBackend(), request, cache, Silent()) as plans:
            keys.append(tuple(p.spec.key() for p in plans))
        with planned(bundle, hooks, kit.KitBackend(), request, cache, Silent()) as again:
            assert keys[-1] == tuple(p.spec.key() for p in again), "preparing twice gave two graphs"
    for column in zip(*keys, strict=True):
        assert len(set(column)) == len(requests)


def test_the_last_build_is_found_without_preparing_anything(
    bundle: Bundle, hooks: MatcherHooks, cache: EngineCache, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = kit.KitBackend()
    assert find_built(bundle, hooks, backend, "fp32", cache, ()) is None
    build_engines(bundle, hooks, backend, BuildRequest(), cache)
    later = build_engines(bundle, hooks, backend, BuildRequest(batch=Range(2, 2, 2)), cache)
    now = time.time() + 10
    os.utime(cache.sidecar_path(later[0].entry.key), (now, now))
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = find_built(bundle, hooks, backend, "fp32", cache, ())
    assert found is not None
    assert {n: e.key for n, e in found.items()} == {b.plan.network: b.entry.key for b in later}
    assert find_built(bundle, hooks, backend, "fp16", cache, ()) is None
    assert find_built(replace(bundle, sha256="0" * 64), hooks, backend, "fp32", cache, ()) is None
    monkeypatch.setattr("matchrt.engines.build.code_fingerprint", lambda hooks: "other code")
    assert find_built(bundle, hooks, backend, "fp32", cache, ()) is None


def test_the_linters_errors_stop_the_build_before_it_begins(
    bundle: Bundle, hooks: MatcherHooks, cache: EngineCache, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matchrt.graph import linter

    finding = linter.Finding("/n", "TopK", "K is at most 3840", "convert with fewer keypoints", "error")
    monkeypatch.setattr(linter, "lint", lambda model, target: [finding])
    monkeypatch.setenv("MATCHRT_KIT", "die")
    with pytest.raises(BackendError, match=r"node '/n' \(TopK\): K is at most 3840; convert with fewer"):
        build_engines(bundle, hooks, kit.KitBackend(), BuildRequest(), cache)
    assert cache.committed() == []


def test_an_unknown_precision_is_refused(bundle: Bundle, hooks: MatcherHooks, cache: EngineCache, kit: Any) -> None:
    with pytest.raises(UsageError, match="fp8"):
        build_engines(bundle, hooks, kit.KitBackend(), BuildRequest(precision="fp8"), cache)


def test_another_releases_option_is_a_plugins_too(
    bundle: Bundle, cache: EngineCache, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = MatcherHooks(get_plugins(), get_plugins().matcher("superpoint-lightglue"))
    monkeypatch.setattr(hooks, "engine_options", lambda target: {"level": 1, "workspace": 7})
    with planned(bundle, hooks, kit.KitBackend(), BuildRequest(options={"level": 5}), cache, Silent()) as plans:
        assert dict(plans[0].spec.options) == {"level": 5, "workspace": 7}


def test_a_network_without_half_is_built_in_float32_outright(
    bundle: Bundle, cache: EngineCache, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen with TensorRT 8.6.0 on a GPU: constraints on all that computes left it free to round constants and choices."""
    asked: dict[str, BuildJob] = {}

    class Constrained(kit.KitBackend):  # type: ignore[misc, name-defined]
        def target(self, precision: str) -> Target:
            return Target(backend="tensorrt", version="8.6.0", precision=precision)

        def build(self, job: BuildJob, progress: Progress) -> BuildOutput:
            asked[job.network] = job
            made: BuildOutput = super().build(job, progress)
            return made

    hooks = MatcherHooks(get_plugins(), get_plugins().matcher("superpoint-lightglue"))
    own = hooks.precision_rules(Target(backend="tensorrt", version="8.6.0", precision="fp16"))
    everything = PrecisionRule(pattern=".", reason="all of it", networks=("matcher",))
    monkeypatch.setattr(hooks, "precision_rules", lambda target: [*own, everything])
    built = build_engines(bundle, hooks, Constrained(), BuildRequest(precision="fp16"), cache)
    assert {n: (j.precision, bool(j.kept)) for n, j in asked.items()} == {
        "extractor": ("fp16", True),
        "matcher": ("fp32", False),
    }
    assert [b.plan.spec.precision for b in built] == ["fp16", "fp16"]  # what was asked for
    assert "TensorRT 8 builds in float32 what has no half: the graph stays float32" in built[1].plan.prepared.notes


# ── A process of its own ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildJob:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "g.onnx").write_bytes(b"graph")
    return BuildJob(network="net", graph=tmp_path / "g.onnx", timing_cache=b"before+", options={"level": 3})


def test_an_isolated_build_gives_the_same(kit: Any, job: BuildJob) -> None:
    here, there = kit.KitBackend().build(job, Silent()), build_isolated(kit.KitBackend(), job, Silent())
    assert there == here
    assert there.timing_cache == b"before+t"


def test_an_isolated_build_that_dies_takes_only_itself(
    kit: Any, job: BuildJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATCHRT_KIT", "die")
    with pytest.raises(BackendError, match="builder process of network 'net' died with signal SIGKILL"):
        build_isolated(kit.KitBackend(), job, Silent())


def test_an_isolated_builds_error_comes_out_as_it_was(kit: Any, job: BuildJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATCHRT_KIT", "fail")
    with pytest.raises(BackendError, match="the kit refuses") as caught:
        build_isolated(kit.KitBackend(), job, Silent())
    assert caught.value.hint == "as it was told"


@pytest.fixture
def marks(tmp_path: Path, job: BuildJob, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the kit's builds, which sleep for a minute, leave the ids of their processes. With `job` the kit is found there."""
    folder = tmp_path / "marks"
    folder.mkdir()
    monkeypatch.setenv("MATCHRT_KIT", "sleep")
    monkeypatch.setenv("MATCHRT_KIT_MARKS", str(folder))
    return folder


def press_ctrl_c(kit: Any, marks: Path, builds: int) -> None:
    """In this process, once so many builds sleep."""

    def interrupt() -> None:
        while len(kit.pids(marks)) < builds:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()


def are_gone(kit: Any, marks: Path) -> None:
    for pid in kit.pids(marks):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_builder_that_cannot_even_start_is_told(kit: Any, job: BuildJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(BackendError, match=r"builder process of network 'net'.*No module named 'engine_kit'"):
        build_isolated(kit.KitBackend(), job, Silent())


def test_ctrl_c_ends_an_isolated_build(kit: Any, job: BuildJob, tmp_path: Path, marks: Path) -> None:
    press_ctrl_c(kit, marks, 1)
    with pytest.raises(KeyboardInterrupt):
        build_isolated(kit.KitBackend(), job, Silent())
    are_gone(kit, marks)
    assert not list(tmp_path.glob(".work-*"))


def test_networks_build_side_by_side_and_give_the_same(
    bundle: Bundle, hooks: MatcherHooks, tmp_path: Path, kit: Any, job: BuildJob
) -> None:
    caches = [EngineCache(tmp_path / name) for name in ("one", "two")]
    one = build_engines(bundle, hooks, kit.KitBackend(), BuildRequest(), caches[0])
    two = build_engines(bundle, hooks, kit.KitBackend(), BuildRequest(), caches[1], jobs=2)
    assert [(b.plan.network, b.entry.sha256, b.hit) for b in two] == [
        (b.plan.network, b.entry.sha256, b.hit) for b in one
    ]
    assert all(b.entry.record["built"]["isolated"] for b in two)
    again = build_engines(bundle, hooks, kit.KitBackend(), BuildRequest(), caches[1], jobs=2)
    assert [b.hit for b in again] == [True, True]
    with pytest.raises(UsageError, match="jobs must be at least 1"):
        build_engines(bundle, hooks, kit.KitBackend(), BuildRequest(), caches[1], jobs=0)


def test_ctrl_c_ends_builds_side_by_side(
    bundle: Bundle, hooks: MatcherHooks, cache: EngineCache, kit: Any, marks: Path
) -> None:
    """Neither child outlives the call, and the cache holds nothing half-written."""
    press_ctrl_c(kit, marks, 2)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, hooks, kit.KitBackend(), BuildRequest(), cache, jobs=2)
    assert time.monotonic() - begin < 50, "the kit sleeps for 60 s"
    are_gone(kit, marks)
    assert not cache.committed()


def test_a_failure_ends_the_build_beside_it(
    bundle: Bundle,
    hooks: MatcherHooks,
    cache: EngineCache,
    kit: Any,
    marks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MATCHRT_KIT_FAILS", "matcher")
    begin = time.monotonic()
    with pytest.raises(BackendError, match="the kit refuses"):
        build_engines(bundle, hooks, kit.KitBackend(), BuildRequest(), cache, jobs=2)
    assert time.monotonic() - begin < 50, "the kit sleeps for 60 s"
    assert len(kit.pids(marks)) == 1
    are_gone(kit, marks)
    assert not cache.committed()


# ── TensorRT-RTX: a real builder ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rtx_builds_both_networks_and_finds_them_again(
    bundle: Bundle, hooks: MatcherHooks, cache: EngineCache, precision: str
) -> None:
    backend = get_plugins().backends["tensorrt_rtx"].create()
    stages: list[str] = []

    class Seen(Silent):
        def start(self, stage: str, total: int | None) -> None:
            stages.append(stage)

    request = BuildRequest(precision=precision, batch=Range(1, 1, 1), targets=("sm89",))
    built = build_engines(bundle, hooks, backend, request, cache, Seen())
    assert [b.hit for b in built] == [False, False]
    assert {"build extractor", "build matcher", "Building engine", "Optimizing graph"} <= set(stages)
    for b in built:
        contract = bundle.manifest.network(b.plan.network)
        inputs = [(t.name, t.dtype, t.shape) for t in b.entry.io if t.kind == "input"]
        assert [i[0] for i in inputs] == [t.name for t in contract.inputs]
        assert all(-1 not in shape for _, _, shape in inputs)
        assert b.entry.size > 100_000
        assert cache.problems(b.entry.key) == ""
    again = build_engines(bundle, hooks, backend, request, cache)
    assert [b.hit for b in again] == [True, True]
    assert [b.entry.sha256 for b in again] == [b.entry.sha256 for b in built]
    assert all(b.seconds < 2 for b in again)
    sizes = [b.entry.size for b in built]
    assert all(size < 20_000_000 for size in sizes)
    half = built[1].entry.record["prepared"]["notes"]
    assert any("float16" in n for n in half) == (precision == "fp16")


@pytest.mark.rtx
def test_rtx_stops_when_progress_raises_and_leaves_nothing(
    bundle: Bundle, hooks: MatcherHooks, cache: EngineCache
) -> None:
    class Stop(Silent):
        def start(self, stage: str, total: int | None) -> None:
            if stage == "Optimizing graph":
                raise KeyboardInterrupt

    backend = get_plugins().backends["tensorrt_rtx"].create()
    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, hooks, backend, BuildRequest(), cache, Stop())
    assert cache.committed() == []
    assert not list(cache.root.glob(".work-*"))
    assert not list(cache.root.glob("*.engine"))


@pytest.mark.rtx
def test_ctrl_c_stops_a_real_build_on_the_command_line(fixed_bundle: Path, tmp_path: Path) -> None:
    env = {**os.environ, "MATCHRT_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "matchrt", "build", str(fixed_bundle), "--backend", "tensorrt_rtx"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    key_locks = tmp_path / "engines"
    while not list(key_locks.glob("*.lock")):  # the first build has begun
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "stopped" in stderr
    assert "Traceback" not in stderr
    left = {p.name.partition(".")[2] or p.name for p in key_locks.iterdir() if p.name != "timing"}
    assert left <= {"lock", "engine", "json"}
    engines, sidecars = ({p.stem for p in key_locks.glob(f"*.{s}")} for s in ("engine", "json"))
    assert engines == sidecars, "half-written"
    assert len(sidecars) < 2


@pytest.mark.rtx
def test_rtx_refuses_a_target_it_does_not_know(bundle: Bundle, hooks: MatcherHooks, cache: EngineCache) -> None:
    backend = get_plugins().backends["tensorrt_rtx"].create()
    with pytest.raises(UsageError, match="no target 'sm90'") as caught:
        build_engines(bundle, hooks, backend, BuildRequest(targets=("sm90",)), cache)
    assert "SM89" in str(caught.value.hint)


@pytest.mark.rtx
def test_rtx_says_that_it_builds_and_whether_it_runs() -> None:
    from matchrt.backends.cuda_probe import probe

    info = get_plugins().backends["tensorrt_rtx"].create().info()
    assert info.can_build
    assert info.can_run == probe().usable
    if not info.can_run:
        with pytest.raises(EnvironmentLackError):
            get_plugins().backends["tensorrt_rtx"].create().load("net", b"x", (), {})
