"""The kit, loaded by path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def kit() -> Any:
    """The module `engine_kit`."""
    path = Path(__file__).with_name("engine_kit.py")
    spec = importlib.util.spec_from_file_location("engine_kit", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine_kit"] = module  # a process of its own finds it by this name, with its folder on the path
    spec.loader.exec_module(module)
    return module
