"""The commands of a worker. Each takes and returns JSON-able values; arrays lie in files."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from matchrt.errors import UsageError
from matchrt.progress import Progress
from matchrt.workers.arrays import read_arrays, write_arrays
from matchrt.workers.machine import device_of, versions_of

if TYPE_CHECKING:
    from matchrt.runtime import Matcher

Answer = dict[str, Any]


class Desk:
    """What one worker process holds: at most one open matcher."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        self._matcher: Matcher | None = None
        self._count = 0

    def commands(self) -> Mapping[str, Callable[..., Answer]]:
        """By name."""
        return {
            "hello": self.hello,
            "open": self.open,
            "preprocess": self.preprocess,
            "run_steps": self.run_steps,
            "match": self.match,
            "close": self.close,
        }

    @property
    def matcher(self) -> Matcher:
        """The open one. Raises `UsageError`."""
        if self._matcher is None:
            raise UsageError("no bundle is open in this worker")
        return self._matcher

    def hello(self) -> Answer:
        """Show that the process is up."""
        return {"python": platform.python_version()}

    def open(self, bundle: str, **how: Any) -> Answer:
        """Load a bundle; see `matchrt.load`."""
        self.close()
        begin = time.perf_counter()
        from matchrt.runtime import load

        imported = time.perf_counter() - begin
        watch = _BuildWatch(self._progress)
        begin = time.perf_counter()
        matcher = load(bundle, **how, progress=watch)
        matcher.sessions()
        self._matcher = matcher
        loaded = time.perf_counter() - begin - watch.seconds
        return {
            "name": matcher.name,
            "seconds": {"import": imported, "build": watch.seconds, "load": loaded},
            "versions": versions_of(matcher.backend),
            "device": device_of(matcher),
            "settings": {n: matcher.settings[n] for n in matcher.settings},
        }

    def preprocess(self, images: list[dict[str, str]]) -> Answer:
        """Tensors of one pair."""
        from matchrt.images.read import read_image

        image0, image1 = (read_image(_image(i)) for i in images)
        tensors, _ = self.matcher.preprocess(image0, image1, self.matcher.settings)
        return {"arrays": self._put(tensors)}

    def run_steps(self, tensors: str, wanted: list[str]) -> Answer:
        """The whole namespace after all steps."""
        from matchrt.runtime.steps import run_steps

        matcher = self.matcher
        return {
            "arrays": self._put(run_steps(matcher.manifest, matcher.sessions(), read_arrays(Path(tensors)), wanted))
        }

    def match(self, images: list[dict[str, str]]) -> Answer:
        """Matches of one pair."""
        image0, image1 = (_image(i) for i in images)
        matches = self.matcher(image0, image1)
        names = ("keypoints0", "keypoints1", "scores", "indices", "all_keypoints0", "all_keypoints1")
        arrays = {n: getattr(matches, n) for n in names if getattr(matches, n) is not None}
        return {
            "arrays": self._put(arrays),
            "seconds": dict(matches.seconds),
            "size0": list(matches.size0),
            "size1": list(matches.size1),
            "notes": list(matches.notes),
        }

    def close(self) -> Answer:
        """Close what is open."""
        matcher, self._matcher = self._matcher, None
        if matcher is not None:
            matcher.close()
        return {}

    def _put(self, arrays: Mapping[str, np.ndarray]) -> str:
        self._count += 1
        return str(write_arrays(self._folder / f"out-{self._count}.npz", arrays))


def _image(described: Mapping[str, str]) -> Any:
    return described["path"] if "path" in described else read_arrays(Path(described["array"]))["image"]


class _BuildWatch:
    """Relays progress, and adds up the seconds of the outermost stages: opening a bundle has stages only while it builds."""

    def __init__(self, progress: Progress) -> None:
        self.seconds = 0.0
        self._progress, self._depth, self._begin = progress, 0, 0.0

    def start(self, stage: str, total: int | None) -> None:
        self._begin = self._begin if self._depth else time.perf_counter()
        self._depth += 1
        self._progress.start(stage, total)

    def advance(self, steps: int = 1, detail: str = "") -> None:
        self._progress.advance(steps, detail)

    def finish(self) -> None:
        self._depth -= 1
        if not self._depth:
            self.seconds += time.perf_counter() - self._begin
        self._progress.finish()
