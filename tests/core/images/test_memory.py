"""Memory that is used again: never while somebody still looks at it, never without bound, and with the page faults gone."""

from __future__ import annotations

import gc
import sys
import threading

import cv2
import numpy as np
import pytest
from PIL import Image as PILImage

from matchrt import images
from matchrt.errors import UsageError
from matchrt.images import memory
from matchrt.images.memory import empty, temporary
from matchrt.images.opencv import one_thread_a_call
from matchrt.images.pillow_memory import _shown, pixels_of
from matchrt.images.read import read_image
from matchrt.model import Settings
from matchrt.samples import sample_pairs
from matchrt.settings import resolve

SIDE = 300


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_free", {})


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_serves_again_only_when_every_view_is_gone() -> None:
    first = empty((SIDE, SIDE))
    first[:] = 1
    place, row = address(first), first[None, None][0, 0, 7, ::2]
    del first
    gc.collect()
    second = empty((SIDE, SIDE))
    second[:] = 2
    assert address(second) != place
    assert (row == 1).all()
    del row
    third = empty((SIDE // 2, SIDE, 2))
    assert address(third) == place, "as many bytes in another shape"
    assert third.flags.writeable
    assert third.dtype == np.float32
    assert empty((3, SIDE), np.uint8).shape == (3, SIDE)


def test_no_more_is_kept_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "KEPT_BYTES", 5 * SIDE * SIDE * 4)
    held = [empty((SIDE, SIDE)) for _ in range(12)]
    held.clear()
    too_large = empty((SIDE, SIDE, 6))
    del too_large
    assert {size: len(blocks) for size, blocks in memory._free.items()} == {SIDE * SIDE * 4: 5}
    other = empty((SIDE, SIDE, 3))
    del other
    assert {size: len(blocks) for size, blocks in memory._free.items()} == {SIDE * SIDE * 12: 1}


def test_threads_that_take_and_drop_never_share() -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(300):
            mine, other = empty((SIDE, SIDE)), temporary("x", (SIDE, 10))
            mine[:], other[:] = number, number
            if not ((mine == number).all() and (other == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_temporary_is_the_threads_own_and_grows() -> None:
    small = temporary("a", (3, 4))
    assert address(temporary("a", (2, 2))) == address(small)
    assert address(temporary("b", (3, 4))) != address(small)
    assert temporary("a", (50, 60)).shape == (50, 60)


def test_a_resize_into_part_of_an_array_is_the_same() -> None:
    pixels = np.random.default_rng(1).random((90, 120, 3), dtype=np.float32)
    for size in ((60, 200), (200, 150), (30, 40)):
        whole = np.full((220, 230, 3), 7, np.float32)
        part = whole[5 : 5 + size[0], 3 : 3 + size[1]]
        images.resize_antialiased(pixels, size, out=part)
        assert np.array_equal(part, images.resize_antialiased(pixels, size))
        assert (whole[: 5 + size[0], :3] == 7).all()
        assert (whole[5 + size[0] :] == 7).all()


def test_a_frame_is_what_padding_gives() -> None:
    empty((40, 500))[:] = 9  # what the frame may find in its memory
    values = np.random.default_rng(2).random((31, 410), dtype=np.float32)
    whole, content = images.frame((31, 410), (40, 500))
    content[:] = values
    assert np.array_equal(whole, images.pad_bottom_right(values, (40, 500))[0])
    with pytest.raises(UsageError, match="larger"):
        images.frame((41, 410), (40, 500))


def test_opencv_gets_its_threads_back_from_the_last() -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        outer, inner = one_thread_a_call(), one_thread_a_call()
        with outer:
            with inner:
                assert cv2.getNumThreads() == 1
            assert cv2.getNumThreads() == 1
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def lightglue() -> Settings:
    from matchrt_lightglue.plugin import MATCHER_SPEC

    return resolve(MATCHER_SPEC.settings, ("flag", {"size": "768x1024"}), environment={})


@pytest.mark.skipif(sys.platform != "linux", reason="counts Linux's page faults")
def test_preparing_a_picture_touches_no_fresh_memory() -> None:
    """Six megabytes of tensors are 1536 pages; with fresh memory for each step it was more than 3000 a pair."""
    import resource

    from matchrt_lightglue.preprocess import preprocess_pair

    pair, settings = sample_pairs()[0], lightglue()
    pictures = read_image(pair.image0), read_image(pair.image1)
    for _ in range(3):
        preprocess_pair(pictures, settings)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        preprocess_pair(pictures, settings)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 10 * 300


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (640, 481), (5000, 1500)])
def test_pillows_own_memory_gives_what_numpy_gets(
    mode: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest has several blocks of memory, which Pillow does not show."""
    noise = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = PILImage.fromarray(noise).convert(mode)
    wanted = np.array(image)
    got = pixels_of(image)
    assert got.dtype == np.uint8
    assert np.array_equal(got, wanted)
    shows = hasattr(image, "__arrow_c_array__")
    assert (_shown(image) is not None) == ((shows and size != (5000, 1500)) or (shows and mode == "L"))
    image.putpixel((0, 0), 255 - int(wanted[0, 0]) if mode == "L" else tuple(255 - int(v) for v in wanted[0, 0]))
    assert np.array_equal(got, wanted), "a copy, not Pillow's own"
    monkeypatch.delitem(sys.modules, "cv2")
    assert np.array_equal(pixels_of(PILImage.fromarray(wanted)), wanted)
    monkeypatch.setattr("matchrt.images.pillow_memory._shown", lambda image: None)
    assert np.array_equal(pixels_of(PILImage.fromarray(wanted)), wanted)
