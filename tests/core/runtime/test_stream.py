"""Streaming: the order, the answers, the errors of one pair after another, never more pairs on their way than allowed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import matchrt
from matchrt.errors import ImageError, UsageError
from matchrt.matches import Matches
from matchrt.runtime.prepared import Prepared
from matchrt.runtime.stream import Jobs, stream
from matchrt.samples import sample_pairs


@pytest.fixture(scope="module")
def matcher(mini_bundle: Path) -> Iterator[matchrt.Matcher]:
    with matchrt.load(mini_bundle, threads=1) as matcher:
        yield matcher


def images(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Parts of two photographs, 200 by 280."""
    sample = sample_pairs()[0]
    a, b = (np.asarray(Image.open(p).convert("L").resize((480, 360))) for p in (sample.image0, sample.image1))
    corners = [(20 * i, 25 * i) for i in range(count)]
    return [(a[y : y + 200, x : x + 280], b[y : y + 200, x : x + 280]) for y, x in corners]


@pytest.mark.parametrize(
    ("batch", "workers", "lanes", "prefetch"), [(1, 1, 1, 1), (1, 3, 2, None), (3, 2, 2, 3), (4, 4, 1, 5)]
)
def test_a_stream_gives_what_single_calls_give(
    matcher: matchrt.Matcher, batch: int, workers: int, lanes: int, prefetch: int | None
) -> None:
    pairs = images(7)
    expected = list(matcher.match_many(pairs, batch_size=batch))
    got = list(matcher.match_many(pairs, batch_size=batch, workers=workers, lanes=lanes, prefetch=prefetch))
    assert len(got) == len(expected) == 7
    for one, other in zip(expected, got, strict=True):
        assert len(one) > 0
        assert np.array_equal(one.keypoints0, other.keypoints0)
        assert np.array_equal(one.scores, other.scores)
        assert set(other.seconds) == {"read", "preprocess", "run", "postprocess"}
    assert len({m.keypoints0.tobytes() for m in expected}) == 7


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pair_that_fails_raises_at_its_turn(matcher: matchrt.Matcher, workers: int) -> None:
    pairs: list[Any] = [*images(3), ("no-such.jpg", "no-such.jpg"), *images(3)]
    answers = matcher.match_many(pairs, batch_size=2, workers=workers)
    for _ in range(3):
        assert isinstance(next(answers), Matches)
    with pytest.raises(ImageError, match=r"no-such\.jpg"):
        next(answers)
    assert list(matcher.match_many([], workers=workers)) == []


def test_pairs_that_cannot_be_listed_raise_at_their_turn(matcher: matchrt.Matcher) -> None:
    def listing() -> Iterator[Any]:
        yield from images(2)
        raise RuntimeError("the list ends here")

    answers = matcher.match_many(listing(), workers=2)
    assert [type(next(answers)) for _ in range(2)] == [Matches, Matches]
    with pytest.raises(RuntimeError, match="ends here"):
        next(answers)


def test_counts_out_of_range_are_usage_errors(matcher: matchrt.Matcher) -> None:
    for wrong in ({"batch_size": 0}, {"workers": -1}, {"lanes": 0}, {"workers": 1, "batch_size": 4, "prefetch": 3}):
        with pytest.raises(UsageError):
            matcher.match_many(images(1), **wrong)  # type: ignore[arg-type]


class Watched:
    """Jobs that sleep, and count what is on its way and at work."""

    def __init__(self, fail_run: int | None = None) -> None:
        self.lock, self.taken, self.given = threading.Lock(), 0, 0
        self.most_ahead, self.at_once, self.peak, self.batches = 0, 0, 0, []
        self.fail_run = fail_run

    def pairs(self, count: int) -> Iterator[tuple[int, int]]:
        for i in range(count):
            self.taken += 1
            self.most_ahead = max(self.most_ahead, self.taken - self.given)
            yield i, i

    def prepare(self, pair: tuple[int, int]) -> Prepared:
        with self.lock:
            self.at_once += 1
            self.peak = max(self.peak, self.at_once)
        time.sleep(0.01 if pair[0] % 2 else 0.03)  # the second of two is ready first
        with self.lock:
            self.at_once -= 1
        return Prepared((pair, pair), {}, pair[0], {})  # type: ignore[arg-type]

    def run(self, prepared: list[Prepared]) -> list[Prepared]:
        self.batches.append([p.geometry for p in prepared])
        time.sleep(0.01)
        if self.fail_run in self.batches[-1]:
            raise MemoryError("no room")
        return prepared

    def finish(self, ready: Prepared) -> Any:
        time.sleep(0.02 if ready.geometry % 2 else 0)
        return ready.geometry

    def stream(self, count: int, **how: int) -> Iterator[Any]:
        with ThreadPoolExecutor(1) as lanes:
            for result in stream(self.pairs(count), Jobs(self.prepare, self.run, self.finish), lanes, **how):
                self.given += 1
                yield result


def test_look_ahead_is_bounded_and_batches_are_whole() -> None:
    jobs = Watched()
    assert list(jobs.stream(14, batch_size=4, workers=3, ahead=9)) == list(range(14))
    assert 4 < jobs.most_ahead <= 9 + 1
    assert jobs.peak == 3
    assert jobs.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13]]


def test_a_run_that_fails_comes_after_the_results_before_it() -> None:
    jobs = Watched(fail_run=5)
    results = jobs.stream(20, batch_size=2, workers=4, ahead=12)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(MemoryError):
        next(results)


@pytest.mark.parametrize(("workers", "wanted"), [(3, 1), (1, 2)])
def test_readers_do_not_wake_opencvs_threads(workers: int, wanted: int) -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    seen: set[int] = set()
    jobs = Watched()
    prepare = jobs.prepare
    jobs.prepare = lambda pair: seen.add(cv2.getNumThreads()) or prepare(pair)  # type: ignore[method-assign]
    try:
        answers = jobs.stream(9, batch_size=1, workers=workers, ahead=4)
        assert next(answers) == 0
        assert seen == {wanted}
        answers.close()  # type: ignore[attr-defined]
        assert cv2.getNumThreads() == 2, "given up half-way, it puts back what was set"
    finally:
        cv2.setNumThreads(before)


def test_a_stream_that_is_given_up_leaves_no_threads() -> None:
    before = threading.active_count()
    answers = Watched().stream(1000, batch_size=1, workers=4, ahead=8)
    assert next(answers) == 0
    answers.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
