"""What the tests of all plugins share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def rtx_builder() -> ModuleType:
    """The real builder behind core's own tests, loaded once for the process; it needs no GPU, and makes no runtime."""
    if "rtx_builder" not in sys.modules:
        path = Path(__file__).parents[1] / "core" / "graph" / "rtx_builder.py"
        spec = importlib.util.spec_from_file_location("rtx_builder", path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["rtx_builder"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["rtx_builder"])
    return sys.modules["rtx_builder"]
