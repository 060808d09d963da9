"""Fixtures that every room shares."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tests out of the user's cache, and off the network."""
    os.environ["MATCHRT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.pop("MATCHRT_DEBUG", None)


@pytest.fixture(scope="session")
def run_cli() -> Cli:
    """Run `matchrt ARGS…` in a process of its own."""

    def run(
        *args: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "matchrt", *map(str, args)],
            capture_output=True,
            text=True,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            timeout=280,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def mini_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the small matcher with its shipped weights, few keypoints; tests must not change it."""
    from matchrt.export.convert import ConvertRequest, run_convert
    from matchrt.plugins import get_plugins

    output = tmp_path_factory.mktemp("bundles") / "mini"
    request = ConvertRequest(
        matcher="superpoint-lightglue",
        variant="mini",
        output=output,
        settings={"keypoints": 128, "long_side": 320},
    )
    run_convert(request, get_plugins())
    return output
