"""The probe answers in every state of the driver, and never raises."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from matchrt.backends.cuda_probe import probe, probe_with


def test_here_it_answers_without_raising() -> None:
    found = probe()
    assert found.usable == bool(found.gpus)
    assert found.usable or found.reason


def test_no_driver_is_a_reason() -> None:
    def missing() -> Any:
        raise OSError("libcuda.so.1: cannot open shared object file")

    found = probe_with(missing)
    assert not found.usable
    assert "no NVIDIA driver" in found.reason


def test_a_gpu_is_described(fake_cuda: Any) -> None:
    found = probe_with(lambda: fake_cuda)
    assert found.usable
    assert found.driver == "13.0"
    gpu = found.gpus[0]
    assert (gpu.index, gpu.name, gpu.compute_capability, gpu.multiprocessors) == (0, "Stand-in GPU", "8.9", 16)
    assert gpu.memory_bytes == 1 << 30


def test_no_device_is_a_reason(fake_cuda: Any, stand_in: Any) -> None:
    stand_in.switch(fake_cuda, "device_count", 0)
    found = probe_with(lambda: fake_cuda)
    assert not found.usable
    assert "sees no GPU" in found.reason


@pytest.mark.parametrize("code", [100, 999, 3])
def test_a_driver_that_does_not_start_is_a_reason(code: int) -> None:
    class Broken:
        def cuInit(self, flags: int) -> int:
            return code

    found = probe_with(Broken)
    assert not found.usable
    assert str(code) in found.reason


def test_a_driver_without_the_calls_is_a_reason(tmp_path: Path) -> None:
    found = probe_with(lambda: ctypes.CDLL(None))
    assert not found.usable
    assert "too old" in found.reason
