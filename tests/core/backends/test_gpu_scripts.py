"""The scripts that make receipts on a GPU, run on the stand-ins, so that none is first run where minutes are dear."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[3] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tensorrt", ["tensorrt-8.6.1"], indirect=True)
def test_the_runtimes_promises(tensorrt: Any, fixed_bundle: Path, tmp_path: Path) -> None:
    """What needs no library of the GPU passes here; the rest fails for want of that library, and of nothing else."""
    saved = tmp_path / "receipt.json"
    code = script("gpu_runtime").main([str(fixed_bundle), "--runs", "20", "--memory", "driver", "--save", str(saved)])
    receipt = json.loads(saved.read_text())
    checks = receipt["checks"]
    for name in ("build", "cuda_graph", "threads", "many_runs"):
        assert checks[name]["passed"], checks[name]
    assert checks["cuda_graph"]["graphs_captured"] == 2
    assert checks["threads"]["runs"] == 40
    assert checks["providers"]["answers"]["driver"] == "equal"
    for name in ("zero_copy_cupy", "zero_copy_cuda_core"):
        assert checks[name]["error"].startswith("ModuleNotFoundError: No module named 'cu")
    assert (code, receipt["passed"]) == (1, False)
