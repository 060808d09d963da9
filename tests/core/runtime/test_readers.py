"""Reader processes: what they hand over is what threads make, their failures are told at the pair's turn, and they end."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import matchrt
from matchrt.errors import BackendError, ImageError, PluginError, UsageError
from matchrt.plugins.discovery import Found
from matchrt.runtime.readers import reader as reader_module
from matchrt.runtime.readers.__main__ import _answer
from matchrt.runtime.readers.messages import SMALL, Inbox, Outbox, new_memory
from matchrt.runtime.readers.reader import Reader
from matchrt.samples import sample_pairs
from matchrt.workers.timing import BundleRun, measure


@pytest.fixture(scope="module")
def matcher(mini_bundle: Path) -> Iterator[matchrt.Matcher]:
    with matchrt.load(mini_bundle, threads=1) as matcher:
        yield matcher


@pytest.fixture(scope="module")
def pairs() -> list[Any]:
    """Paths, text, encoded bytes, arrays and Pillow images; one pair of each and a mixed one."""
    (a, b), (c, d) = [(Path(p.image0), Path(p.image1)) for p in sample_pairs()[:2]]
    arrays = [np.asarray(Image.open(p).resize((300, 200))) for p in (a, b)]
    return [
        (a, b),
        (str(c), str(d)),
        (a.read_bytes(), b.read_bytes()),
        (arrays[0], arrays[1][..., 0]),
        (Image.open(c), Image.fromarray(arrays[1])),
        (a, arrays[1]),
    ]


def assert_same(got: list[matchrt.Matches], expected: list[matchrt.Matches]) -> None:
    """To the bit, pictures included."""
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert len(other) > 0
        assert np.array_equal(one.keypoints0, other.keypoints0)
        assert np.array_equal(one.keypoints1, other.keypoints1)
        assert np.array_equal(one.scores, other.scores)
        assert one.images is not None
        assert other.images is not None
        for mine, theirs in zip(one.images, other.images, strict=True):
            assert np.array_equal(mine.pixels, theirs.pixels)
            assert not mine.pixels.flags.writeable
            assert (mine.source, mine.orientation, mine.notes) == (theirs.source, theirs.orientation, theirs.notes)
        assert set(one.seconds) == {"read", "preprocess", "run", "postprocess"}


@pytest.mark.parametrize("memory", [True, False], ids=["shared memory", "pipe alone"])
def test_processes_give_what_this_process_gives(
    mini_bundle: Path, pairs: list[Any], memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if memory:
        made = new_memory()
        assert (made is not None) == sys.platform.startswith("linux"), "else this test shows nothing on Linux"
        if made is not None:
            os.close(made)
    else:
        monkeypatch.setattr(reader_module, "new_memory", lambda: None)
    with matchrt.load(mini_bundle, threads=1) as matcher:
        expected = list(matcher.match_many(pairs))
        kept = list(matcher.match_many([*pairs, *pairs], batch_size=2, workers=2, lanes=2, processes=True))
        assert_same(kept[: len(pairs)], expected)
        assert_same(kept[len(pairs) :], expected)
        pids = matcher._reader_pool().pids
        assert 1 <= len(pids) <= 2
        assert os.getpid() not in pids
    assert not any(_runs(p) for p in pids), "they end with the matcher"


def test_a_pair_that_cannot_be_read_raises_as_it_does_here(
    matcher: matchrt.Matcher, pairs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.jpg").write_bytes(Path(pairs[0][0]).read_bytes())
    (tmp_path / "broken.jpg").write_bytes(Path(pairs[0][0]).read_bytes()[:5000])
    list(matcher.match_many(pairs[:1], workers=1, processes=True))  # it started in another folder
    monkeypatch.chdir(tmp_path)
    for name in ("hare.jpg", "broken.jpg"):
        with pytest.raises(ImageError) as expected:
            matcher("here.jpg", name)
        answers = matcher.match_many([("here.jpg", "here.jpg"), ("here.jpg", name)], workers=1, processes=True)
        assert len(next(answers)) > 0
        with pytest.raises(ImageError) as error:
            next(answers)
        assert (error.value.message, error.value.hint) == (expected.value.message, expected.value.hint)
        assert name in error.value.message


def test_settings_of_a_call_reach_the_processes(matcher: matchrt.Matcher, pairs: list[Any]) -> None:
    for long_side in (320, 256):
        expected = list(matcher.match_many(pairs[:2], long_side=long_side))
        got = list(matcher.match_many(pairs[:2], workers=2, processes=True, long_side=long_side))
        assert_same(got, expected)


def test_a_process_that_dies_is_told_with_its_pair_and_replaced(matcher: matchrt.Matcher, pairs: list[Any]) -> None:
    list(matcher.match_many(pairs[:1], workers=1, processes=True))
    pool = matcher._reader_pool()
    for pid in pool.pids:
        os.kill(pid, signal.SIGSTOP)  # so that it surely dies at work
        os.kill(pid, signal.SIGKILL)
    count = len(pool.pids)
    for _ in range(count):
        with pytest.raises(BackendError, match=rf"at .*{Path(pairs[0][0]).name} and .*died with signal SIGKILL"):
            list(matcher.match_many(pairs[:1], workers=1, processes=True))
    assert_same(list(matcher.match_many(pairs[:1], workers=1, processes=True)), [matcher(*pairs[0])])


def test_an_answer_that_cannot_be_taken_is_not_taken_for_the_next(
    matcher: matchrt.Matcher, pairs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(matcher.match_many(pairs[:1], workers=1, processes=True))

    def receive(inbox: Inbox) -> Any:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Inbox, "receive", receive)
        with pytest.raises(MemoryError, match="no room"):
            list(matcher.match_many(pairs[:1], workers=1, processes=True))
    assert_same(list(matcher.match_many(pairs[1:2], workers=1, processes=True)), [matcher(*pairs[1])])


def test_a_closed_matcher_has_no_processes(mini_bundle: Path, pairs: list[Any]) -> None:
    matcher = matchrt.load(mini_bundle, threads=1)
    answers = matcher.match_many(pairs * 20, workers=2, processes=True)
    next(answers)
    pool = matcher._reader_pool()
    answers.close()  # type: ignore[attr-defined]
    pids = pool.pids
    matcher.close()
    assert pids
    assert not any(_runs(p) for p in pids)
    with pytest.raises(BackendError, match="closed"):
        pool.prepare(pairs[0], matcher.settings)
    with pytest.raises(BackendError, match="closed"):
        list(matcher.match_many(pairs, workers=2, processes=True))


def test_a_process_that_hangs_does_not_keep_a_matcher_open(mini_bundle: Path, pairs: list[Any]) -> None:
    matcher = matchrt.load(mini_bundle, threads=1)
    list(matcher.match_many(pairs[:1], workers=1, processes=True))
    pool = matcher._reader_pool()
    os.kill(pool.pids[0], signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.prepare, pairs[0], matcher.settings)
        with pytest.raises(FutureTimeout):
            waiting.result(0.5)
        closing = threading.Thread(target=matcher.close, daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
        with pytest.raises(BackendError, match="closed while a reader process was at work"):
            waiting.result(20)


def test_processes_end_with_a_parent_that_is_killed(mini_bundle: Path, pairs: list[Any]) -> None:
    program = (
        "import sys, time, matchrt\n"
        "matcher = matchrt.load(sys.argv[1], threads=1)\n"
        "list(matcher.match_many([sys.argv[2:4]] * 4, workers=2, processes=True))\n"
        "print(*matcher._reader_pool().pids, flush=True)\n"
        "time.sleep(600)\n"
    )
    paths = [str(p) for p in pairs[0]]
    parent = subprocess.Popen([sys.executable, "-c", program, mini_bundle, *paths], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pids = [int(p) for p in parent.stdout.readline().split()]
        assert pids
        assert all(_runs(p) for p in pids)
    finally:
        parent.kill()
        parent.wait()
    end = time.monotonic() + 30
    while any(_runs(p) for p in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(_runs(p) for p in pids)


def test_what_cannot_work_is_refused(
    matcher: matchrt.Matcher, pairs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="processes read for workers"):
        matcher.match_many(pairs, processes=True)
    with pytest.raises(
        UsageError, match=r"another plugin for matcher 'superpoint-lightglue'.*not mine 1 \(elsewhere\)"
    ):
        Reader("superpoint-lightglue", Found("x", "elsewhere", "mine", "1"))
    with pytest.raises(UsageError, match="another plugin for matcher 'nobody': none"):
        Reader("nobody", Found("x", "elsewhere", "mine", "1"))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(BackendError, match="no reader process can be started") as error:
        Reader("superpoint-lightglue", Found("x", "elsewhere", "mine", "1"))
    assert "processes=False" in str(error.value.hint)


def test_an_interpreter_without_matchrt_is_told_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "executable", os.path.realpath(sys.executable))  # without this environment's packages
    with pytest.raises(BackendError, match=r"a reader process died with exit code 1: .*No module named"):
        Reader("superpoint-lightglue", Found("x", "elsewhere", "mine", "1"))


def test_the_folder_does_not_shadow_modules(
    mini_bundle: Path, pairs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 always puts the folder first")
    (tmp_path / "numpy.py").write_text("raise RuntimeError('not numpy')\n")
    monkeypatch.chdir(tmp_path)
    with matchrt.load(mini_bundle, threads=1) as matcher:
        assert len(list(matcher.match_many(pairs[:1], workers=1, processes=True))) == 1


@pytest.mark.parametrize("make", [new_memory, lambda: None], ids=["shared memory", "pipe alone"])
def test_messages_have_arrays_of_their_own(make: Callable[[], int | None]) -> None:
    memory, stream = make(), io.BytesIO()
    outbox, inbox = Outbox(stream, memory), Inbox(stream, memory)
    generator = np.random.default_rng(1)
    sent, received = [], []
    for size in (SMALL - 1, SMALL, 3 * SMALL + 5, 2_000_003, 100_000):  # memory grows, and is then larger than needed
        array = generator.integers(0, 256, size, np.uint8)
        frozen = array[::-1].copy()
        frozen.flags.writeable = False
        sent.append({"a": array, "frozen": frozen, "strided": array[::3]})
        stream.seek(0)
        outbox.send(sent[-1])
        stream.seek(0)
        received.append(inbox.receive())
    for got, one in zip(received, sent, strict=True):
        assert all(np.array_equal(got[n], one[n]) for n in one), "also after later messages used the same memory"
        assert got["a"].flags.writeable
        assert not got["frozen"].flags.writeable
    if memory is not None:
        os.close(memory)


def test_an_answer_that_cannot_be_sent_is_told() -> None:
    stream = io.BytesIO()
    _answer(Outbox(stream), lambda: SimpleNamespace(way=lambda: 0), [])
    _answer(Outbox(stream), lambda: 1 // 0, [])
    stream.seek(0)
    inbox = Inbox(stream)
    kind, record = inbox.receive()
    assert kind == "failed"
    assert record["error"] == PluginError.__name__
    assert "cannot be sent to another process" in record["message"]
    kind, record = inbox.receive()
    assert (kind, record["error"]) == ("failed", "BackendError")
    assert "ZeroDivisionError" in record["message"]
    with pytest.raises(EOFError):
        inbox.receive()


def test_bench_times_streams_with_processes(mini_bundle: Path, pairs: list[Any]) -> None:
    files = [tuple(str(p) for p in pairs[0])]
    with matchrt.load(mini_bundle, threads=1) as matcher:
        timed = BundleRun(matcher, files, batch=1, workers=2, lanes=1, stream_pairs=2, processes=True)  # type: ignore[arg-type]
        assert len(measure(timed, "stream", runs=2)["all"]) == 2
        assert 1 <= len(matcher._reader_pool().pids) <= 2


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
