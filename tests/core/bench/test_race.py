"""Turns, budgets, comparisons and memory: the rules of a fair race, without running a network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchrt.backends.clock import WallClock
from matchrt.bench import race as race_module
from matchrt.bench.contenders import plan, read_bundles, split_against
from matchrt.bench.inputs import fit_size
from matchrt.bench.race import Course, Entry, race, rounds_and_runs
from matchrt.bench.receipt import append_run, command_line, read_receipt
from matchrt.bench.stats import log_slope, quantile, summary
from matchrt.bench.table import COLUMNS, compare, groups, growth, layer_rows, rows, used_columns
from matchrt.errors import UsageError
from matchrt.progress import Silent
from matchrt.workers.client import Opened
from matchrt.workers.desk import Desk
from matchrt.workers.memory import DeviceWatch, host_peak
from matchrt.workers.timing import BundleRun, PeerRun, measure


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=40), st.sampled_from([0.25, 0.5, 0.75]))
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    assert quantile(values, share) == pytest.approx(float(np.quantile(values, share)))
    assert summary(values, per=2)["median"] == pytest.approx(statistics.median(values) / 2)


@given(st.floats(0.2, 3), st.floats(0.01, 10))
def test_the_slope_of_a_power_is_its_exponent(exponent: float, factor: float) -> None:
    assert log_slope([(x, factor * x**exponent) for x in (1, 2, 5, 9)]) == pytest.approx(exponent)


def test_a_slope_needs_two_sizes() -> None:
    with pytest.raises(ValueError, match="two different sizes"):
        log_slope([(4, 1.0), (4, 2.0)])


@pytest.mark.parametrize(
    ("once", "budget", "rounds", "expected"),
    [(0.25, 14, 7, (7, 8)), (2, 10, 7, (5, 1)), (60, 10, 7, (3, 1)), (60, 10, 2, (2, 1)), (1e-6, 10, 5, (5, 500))],
)
def test_rounds_and_runs_keep_to_the_budget(once: float, budget: float, rounds: int, expected: tuple[int, int]) -> None:
    assert rounds_and_runs(once, budget, rounds) == expected


class FakeWorker:
    """Answers as a worker does: every call takes `cost` seconds by its own clock. All write into one log."""

    log: ClassVar[list[tuple[str, str]]] = []
    costs: ClassVar[dict[str, float]] = {
        "onnxruntime fp32": 0.01,
        "torch": 0.08,
        "torch-fp16": 0.04,
        "torch-half": 0.05,
    }
    crash = ""
    silent = False

    def __init__(self, interpreter: str, *, name: str) -> None:
        self.name, self.interpreter, self.ended, self.pid = name, interpreter, False, 1

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        if not self.ended:
            self.log.append((self.name, "end"))
        self.ended = True

    def open(self, bundle: Path, **how: Any) -> Opened:
        if how["options"].get("layer_times"):
            self.log.append((self.name, "open for layers"))
        if self.name == self.crash:
            raise UsageError("it will not start", hint="try another")
        return Opened(
            name="m",
            seconds={"start": 0.1, "build": 0.0, "load": 0.2},
            versions={},
            device={"kind": "cpu", "name": "a processor"},
            settings={},
        )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        if command == "prepare":
            return {"modes": ["engine", "host", "stream"], "first_call": 0.5, "clock": "wall", "inputs": {}}
        if command == "layers":
            if self.silent:
                raise UsageError("it does not time layers")
            self.log.append((self.name, "layers"))
            return {"layers": {"net": [["a", 0.001], ["b", 0.004], ["c", 0.002], ["d", 0.003]]}}
        if arguments["mode"] == "host" and self.name == "torch":
            raise UsageError("no host arrays")
        if "runs" in arguments and arguments["runs"] > 1:
            self.log.append((self.name, arguments["mode"]))
        return {"samples": {"all": [self.costs[self.name]] * arguments.get("runs", 3)}}

    def memory(self) -> dict[str, Any]:
        above = 100 if self.name.startswith("onnx") else 400
        return {"host_peak": 1, "device_peak": above + 500, "device_context": 500, "device_peak_above_context": above}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    FakeWorker.log, FakeWorker.crash = [], ""
    monkeypatch.setattr(race_module, "Worker", FakeWorker)
    return FakeWorker


def entries(bundle: Path, **course: Any) -> list[Entry]:
    contenders = plan(
        read_bundles([str(bundle)]),
        backends=["onnxruntime"],
        precisions=["fp32"],
        batches=[1],
        against=["torch", "torch-fp16", "torch-half"],
    )
    return race(contenders, Course(**{"pairs": [], "rounds": 3, "seconds": 1.5, "modes": ("engine",), **course}))


def test_memory_is_followed_in_the_trial_of_streaming_alone(
    fake: type[FakeWorker], fixed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for the device's memory every 2 ms slows what streams meanwhile, so it must not happen while it is timed."""
    asked: list[dict[str, Any]] = []
    ask = FakeWorker.ask
    monkeypatch.setattr(
        FakeWorker, "ask", lambda self, command, **a: asked.append({"command": command, **a}) or ask(self, command, **a)
    )
    entries(fixed_bundle, modes=("engine", "stream"))
    trials = [a for a in asked if a.get("trial")]
    assert trials
    assert all(a["mode"] == "stream" and a["runs"] == 1 for a in trials)
    assert any(a.get("mode") == "stream" and not a.get("trial") for a in asked)


def test_only_trials_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path, Silent())
    sampled: list[bool] = []
    monkeypatch.setattr(desk._watch, "during", lambda sample=True: sampled.append(sample) or nullcontext())
    clock = WallClock()
    desk._run = PeerRun(lambda: None, clock)
    for arguments in ({}, {"trial": True}, {"trial": False}):
        desk.do("time", {"mode": "engine", "runs": 1, **arguments})
    desk.do("hello", {})
    assert sampled == [False, True, False, True]


def test_streaming_is_timed_at_its_pace() -> None:
    """The first pairs, which fill the queues, are slow and not counted; one stream serves all samples, in whole batches."""
    begun: list[int] = []
    taken = [0]

    def match_many(pairs: Any, batch_size: int, workers: int, lanes: int, processes: bool) -> Iterator[int]:
        assert processes
        begun.append(1)
        for number, _ in enumerate(pairs):
            time.sleep(0.02 if number < 2 else 0.001)
            taken[0] += 1
            yield number

    run = BundleRun.__new__(BundleRun)
    run.matcher = SimpleNamespace(match_many=match_many)  # type: ignore[assignment]
    run.pairs, run.batch, run.workers, run.lanes, run.stream_pairs = [("a", "b")], 3, 2, 2, 6
    run.processes = True
    samples = measure(run, "stream", runs=3)["all"]
    assert len(begun) == 1
    assert taken[0] == 12 + 3 * 6, "two rounds of two lanes with three pairs fill it"
    assert max(samples) < 0.03
    assert min(samples) > 6 * 0.001


def test_rounds_are_interleaved(fake: type[FakeWorker], fixed_bundle: Path) -> None:
    entries(fixed_bundle)
    timed = [name for name, mode in fake.log if mode == "engine"]
    assert timed == ["onnxruntime fp32", "torch", "torch-fp16", "torch-half"] * 3
    assert [mode for _, mode in fake.log[-4:]] == ["end"] * 4


def test_sequential_closes_each_before_the_next(fake: type[FakeWorker], fixed_bundle: Path) -> None:
    entries(fixed_bundle, sequential=True)
    order = [f"{name} {mode}" for name, mode in fake.log]
    assert order.index("onnxruntime fp32 end") < order.index("torch engine")


def test_one_that_fails_is_told_and_the_others_go_on(fake: type[FakeWorker], fixed_bundle: Path) -> None:
    fake.crash = "torch-fp16"
    found = entries(fixed_bundle)
    assert [e.error is None for e in found] == [True, True, False, True]
    run = {"contenders": [e.record() for e in found]}
    (members,) = groups(run).values()
    table = list(rows(members, compare(run)))
    assert table[2][1] == "failed: it will not start"


def test_a_mode_that_fails_is_left_out_and_the_rest_is_timed(fake: type[FakeWorker], fixed_bundle: Path) -> None:
    found = {e.contender.label: e for e in entries(fixed_bundle, modes=("engine", "host"))}
    assert found["torch"].record()["left_out"] == {"host": "no host arrays"}
    assert set(found["torch"].samples) == {"engine"}
    assert set(found["torch-half"].samples) == {"engine", "host"}
    fake.costs["torch-compile-default"] = 0.02
    contenders = plan(
        read_bundles([str(fixed_bundle)]),
        backends=[],
        precisions=["fp32"],
        batches=[1],
        against=["torch-compile-default"],
    )
    (compiled,) = race(contenders, Course(pairs=[], rounds=3, seconds=1.5))
    assert set(compiled.samples) == {"engine", "host"}
    assert "one thread" in compiled.left_out["stream"]


def test_layers_are_timed_apart_after_all_rounds(fake: type[FakeWorker], fixed_bundle: Path) -> None:
    found = entries(fixed_bundle, layers=2)
    own = fake.log.index(("onnxruntime fp32", "open for layers"))
    assert fake.log[own - 1][1] == "end", "while others wait to be timed, or hold memory"
    assert fake.log[own + 1 :] == [("onnxruntime fp32", "layers"), ("onnxruntime fp32", "end")]
    assert found[0].record()["layers"] == {
        "net": {"count": 4, "seconds": pytest.approx(0.01), "slowest": [["b", 0.004], ["d", 0.003]]}
    }
    assert all("layers" not in e.record() for e in found[1:])
    (b, d, others) = layer_rows([found[0].record()])
    assert (b[1:], d[2:], others[2:]) == (
        ("net", "b", "4", "40 %"),
        ("d", "3", "30 %"),
        ("other layers", "3", "30 %"),
    )


def test_a_backend_that_times_no_layers_is_told_and_stays_timed(
    fake: type[FakeWorker], fixed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "silent", True)
    record = entries(fixed_bundle, layers=2)[0].record()
    assert record["left_out"] == {"layers": "it does not time layers"}
    assert "layers" not in record
    assert record["times"]["engine"]["all"]["median"] > 0


def test_ratios_are_of_medians_within_a_group(fake: type[FakeWorker], fixed_bundle: Path) -> None:
    run = {"contenders": [e.record() for e in entries(fixed_bundle)]}
    (ours,) = compare(run)
    assert ours["speed_up"] == pytest.approx(8)
    assert (ours["best_peer"], ours["speed_up_best_peer"]) == ("torch-fp16", pytest.approx(4))
    assert ours["memory_share"] == pytest.approx(100 / 400)
    assert ours["memory_share_whole"] == pytest.approx(600 / 900)
    table = list(rows(run["contenders"], [ours]))
    used = [COLUMNS[i] for i in used_columns(table)]
    assert "engine ms" in used
    assert "pairs/s streaming" not in used
    assert table[0][1:4] == ("10 (10–10)", "8.0×", "4.0×")
    assert table[2][0] == "torch-fp16 *"
    other = [{**c, "bundle": "another"} if c["peer"] else c for c in run["contenders"]]
    (alone,) = compare({"contenders": other})
    assert alone["speed_up"] is alone["speed_up_best_peer"] is alone["memory_share"] is None


def test_growth_follows_what_the_bundles_say(fake: type[FakeWorker], fixed_bundle: Path) -> None:
    record = entries(fixed_bundle)[0].record()
    times = {"engine": {"all": {"median": 0.01}}}
    swept = [
        {**record, "baked": {"keypoints": k}, "times": {"engine": {"all": {"median": k**1.5}}}}
        for k in (256, 512, 1024)
    ]
    (line,) = growth({"contenders": swept}, "keypoints")
    assert line["slope"] == pytest.approx(1.5)
    batches = [{**record, "batch": b, "label": f"x, batch {b}", "times": times} for b in (1, 4)]
    assert growth({"contenders": batches}, "batch")[0]["slope"] == pytest.approx(1)  # 10 ms a pair, so 40 ms a call
    sizes = [{**record, "swept": {"size": [96, 128 * k]}, "times": {"engine": {"all": {"median": k}}}} for k in (1, 2)]
    assert growth({"contenders": sizes}, "size")[0]["slope"] == pytest.approx(1)
    assert growth({"contenders": sizes}, "nothing") == []


def test_unknown_peers_and_rows_asked_for_twice_are_refused(fixed_bundle: Path, tmp_path: Path) -> None:
    bundles = read_bundles([str(fixed_bundle)])
    one = {"backends": ["onnxruntime"], "precisions": ["fp32"], "batches": [1]}
    with pytest.raises(UsageError, match="no peer is called 'tensorflow'"):
        plan(bundles, against=["tensorflow"], **one)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="asked for twice"):
        plan(bundles, against=["torch-compile", "torch-compile-default"], **one)  # type: ignore[arg-type]
    for wrong in ("a.py:f", f"{__file__}:no-name", f"{__file__}:f:precision"):
        with pytest.raises(UsageError):
            plan(bundles, against=[wrong], **one)  # type: ignore[arg-type]
    assert split_against(["torch,torch-fp16", f"{__file__}:f:a=1,2"]) == ["torch", "torch-fp16", f"{__file__}:f:a=1,2"]
    planned = plan(bundles, against=["torch-compile"], **{**one, "backends": ["tensorrt"], "precisions": ["fp16"]})  # type: ignore[arg-type]
    assert [c.label for c in planned[1:]] == [
        f"torch-compile-{m}" for m in ("default", "reduce-overhead", "max-autotune")
    ]
    assert all(c.on_gpu and c.options["device"] == "cuda" and c.precision == "fp16" for c in planned[1:])


def test_a_size_that_the_bundle_has_not_is_refused(fixed_bundle: Path, mini_bundle: Path) -> None:
    fixed, free = (read_bundles([str(b)]).popitem()[1].manifest for b in (fixed_bundle, mini_bundle))
    assert fit_size(fixed, (96, 128)) == {}
    with pytest.raises(UsageError, match="made for 96x128, not 480x640") as refused:
        fit_size(fixed, (480, 640))
    assert "--size 480x640" in str(refused.value.hint)
    assert fit_size(free, (240, 320)) == {"long_side": 320}
    with pytest.raises(UsageError, match="axis width takes 8 to 4096 by 8, not 321"):
        fit_size(free, (240, 321))


def test_receipts_are_appended_and_carry_no_folders(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert append_run(path, {"a": 1}) == 1
    assert append_run(path, {"a": 2}) == 2
    assert [r["a"] for r in read_receipt(path)["runs"]] == [1, 2]
    (tmp_path / "other.json").write_text('{"machine": {}}')
    with pytest.raises(UsageError, match="no receipt"):
        append_run(tmp_path / "other.json", {})
    words = [
        "bench",
        "/home/x/b",
        "--interpreter",
        "tensorrt=/opt/p/python",
        "--against",
        "/q/peers.py:f:a=1",
        "--rounds",
        "3",
    ]
    assert command_line(words) == "matchrt bench b --interpreter tensorrt=python --against peers.py:f:a=1 --rounds 3"


def test_device_memory_is_the_sum_of_changes_during_commands() -> None:
    used = [1000]
    watch = DeviceWatch(lambda: used[0], "stand-in")
    with watch.during():
        used[0] += 500
        watch.context = 500
    used[0] += 77  # another worker's command
    with watch.during():
        used[0] += 400
        time.sleep(0.05)
        used[0] -= 300
    assert watch.own == 600
    assert watch.report() == {
        "device_measure": "stand-in",
        "device_peak": 900,
        "device_context": 500,
        "device_peak_above_context": 400,
    }
    assert host_peak() > 10 << 20


class LateClock:
    """Work is done only when somebody waits for it: each call takes a second of the device."""

    kind = "cuda"

    def __init__(self) -> None:
        self.given, self.done, self.forgotten, self.most_ahead = 0, 0, 0, 0

    def mark(self) -> int:
        return self.given

    def wait(self, mark: int) -> None:
        self.most_ahead = max(self.most_ahead, self.given - self.done)
        self.done = max(self.done, mark)

    def synchronize(self) -> None:
        self.done = self.given

    def seconds(self, begin: int, end: int) -> float:
        assert end <= self.done, "asked before the work was done"
        return end - begin

    def forget(self, *marks: int) -> None:
        self.forgotten += len(marks)


def test_calls_are_kept_ahead_of_the_device_and_their_events_given_back() -> None:
    clock = LateClock()

    def call() -> None:
        clock.given += 1

    samples = measure(PeerRun(call, clock), "engine", runs=6)
    assert samples == {"all": [1.0] * 6}
    assert clock.most_ahead == 3
    assert clock.done == clock.given == 8
    assert clock.forgotten == 2 * 8
    with pytest.raises(UsageError, match="cannot be timed in mode 'stream'"):
        measure(PeerRun(call, clock), "stream", runs=1)
    assert len(measure(PeerRun(lambda: time.sleep(0.01), clock), "engine", seconds=0.05)["all"]) in range(1, 7)
