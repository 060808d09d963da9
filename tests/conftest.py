"""Fixtures that every room shares."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from matchrt.weights.locks import exclusive

Shared = Callable[[str], AbstractContextManager[Path]]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


_SLOW = pytest.StashKey[list[str]]()
_here: list[pytest.Config] = []


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SLOW] = []
    _here.append(config)


def pytest_deselected(items: list[pytest.Item]) -> None:
    _here[-1].stash[_SLOW] += [item.nodeid for item in items if item.get_closest_marker("slow")]


@pytest.fixture(scope="session")
def slow_tests_left_out(pytestconfig: pytest.Config) -> list[str]:
    """Ids of the slow tests among those that this run collected but does not run."""
    return pytestconfig.stash[_SLOW]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """`with shared(name) as folder`: one folder for all processes of a run, held while something that takes long is made there once."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    @contextmanager
    def hold(name: str) -> Iterator[Path]:
        folder = base / f"shared-{name}"
        folder.mkdir(exist_ok=True)
        with exclusive(base / f"shared-{name}.lock"):
            yield folder

    return hold


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tests out of the user's cache, and off the network."""
    os.environ["MATCHRT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.pop("MATCHRT_DEBUG", None)


@pytest.fixture(autouse=True, scope="session")
def _rare_garbage_collection() -> Iterator[None]:
    """Exports make millions of objects that stay; looking through them again and again took a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 50)
    yield
    gc.set_threshold(*before)


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


MINI_SETTINGS = {"MATCHRT_SET_KEYPOINTS": "128", "MATCHRT_SET_LONG_SIDE": "320"}


@dataclass(frozen=True)
class MadeOnTheFly:
    """A cache with the bundle that `matchrt.load("superpoint-lightglue:mini")` made there, under `environment`."""

    cache: Path
    bundle: Path
    environment: Mapping[str, str]


@pytest.fixture(scope="session")
def mini_on_the_fly(shared: Shared) -> MadeOnTheFly:
    """The small matcher with its shipped weights, few keypoints, converted as `matchrt.load` does it; tests must not change it."""
    import matchrt

    with shared("mini_cache") as cache, pytest.MonkeyPatch.context() as patch:
        for name, value in {**MINI_SETTINGS, "MATCHRT_CACHE": str(cache)}.items():
            patch.setenv(name, value)
        matchrt.load("superpoint-lightglue:mini").close()
    (bundle,) = (cache / "bundles").iterdir()
    return MadeOnTheFly(cache, bundle, MINI_SETTINGS)


@pytest.fixture(scope="session")
def mini_bundle(mini_on_the_fly: MadeOnTheFly) -> Path:
    """A bundle of the small matcher with its shipped weights, few keypoints; tests must not change it."""
    return mini_on_the_fly.bundle
