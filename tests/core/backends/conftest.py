"""The stand-ins for TensorRT's binding and for the CUDA driver, and small graphs."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from matchrt.backends import cuda_probe
from matchrt.backends.tensorrt import _api, backend
from matchrt.backends.tensorrt import cuda as cuda_module
from matchrt.engines import build as build_module

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def stand_in() -> Any:
    """The module `stand_in_tensorrt`."""
    spec = importlib.util.spec_from_file_location("stand_in_tensorrt", HERE / "stand_in_tensorrt.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in CUDA driver, compiled."""
    if shutil.which("gcc") is None:
        pytest.skip("NOT RUN: no gcc to compile the stand-in CUDA driver")
    library = tmp_path_factory.mktemp("cuda") / "libstandincuda.so"
    source = HERE / "stand_in_cuda.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return library


@pytest.fixture
def fake_cuda(cuda_library: Path, stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A fresh copy of the stand-in driver, which `cuda.driver()` then uses."""
    own = tmp_path / "libcuda_own.so"
    shutil.copy(cuda_library, own)
    library = stand_in.load_cuda(own)
    monkeypatch.setattr(cuda_module, "load_driver", lambda: library)
    monkeypatch.setattr(cuda_module, "_drivers", {})
    yield library
    assert stand_in.counter(library, "context_errors") == 0, "a call without the primary context"


Save = Callable[..., Path]


@pytest.fixture
def save_graph(tmp_path: Path) -> Save:
    """Write a graph: `save_graph(nodes, inputs, outputs, constants, name)`."""

    def save(
        nodes: list[onnx.NodeProto],
        inputs: dict[str, tuple[int, list[int | str]]],
        outputs: dict[str, tuple[int, list[int | str]]],
        constants: dict[str, np.ndarray] | None = None,
        name: str = "g",
    ) -> Path:
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
            [helper.make_tensor_value_info(n, t, s) for n, (t, s) in outputs.items()],
            [numpy_helper.from_array(v, n) for n, v in (constants or {}).items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, str(path))
        return path

    return save


@pytest.fixture
def conv_graph(save_graph: Save) -> Path:
    """x (b, 3, 16, 16) -> y (b, 8, 14, 14) by a convolution and a Relu."""
    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="/net/conv"),
        helper.make_node("Relu", ["c"], ["y"], name="/net/relu"),
    ]
    x, y = (TensorProto.FLOAT, ["b", 3, 16, 16]), (TensorProto.FLOAT, ["b", 8, 14, 14])
    return save_graph(nodes, {"x": x}, {"y": y}, {"w": weight}, "conv")


@pytest.fixture(params=["tensorrt-8.6.1", "tensorrt-11.4.0.106"])
def tensorrt(
    request: pytest.FixtureRequest, stand_in: Any, fake_cuda: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The backend `tensorrt` with a stand-in release under it, and a cache of its own."""
    module = stand_in.make(stand_in.tables()[request.param], fake_cuda)
    api = _api.adapt("tensorrt", module)
    found = cuda_probe.probe_with(lambda: fake_cuda)
    for place in (backend, build_module):
        monkeypatch.setattr(place, "probe", lambda: found)
    monkeypatch.setattr(backend, "load_api", lambda name: api)
    monkeypatch.setattr(backend.TensorRtBackend, "isolates", False)
    monkeypatch.setenv("MATCHRT_CACHE", str(tmp_path / "cache"))
    yield module
    gc.collect()
