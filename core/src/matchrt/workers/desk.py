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
from matchrt.workers.machine import device_of, device_record, versions_of
from matchrt.workers.memory import DeviceWatch, host_peak
from matchrt.workers.peers import load_peer
from matchrt.workers.timing import BundleRun, PeerRun, Run, default_workers, measure

if TYPE_CHECKING:
    from matchrt.runtime import Matcher

Answer = dict[str, Any]


class Desk:
    """What one worker process holds: at most one open matcher."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        self._matcher: Matcher | None = None
        self._run: Run | None = None
        self._watch = DeviceWatch()
        self._count = 0

    def commands(self) -> Mapping[str, Callable[..., Answer]]:
        """By name."""
        return {
            "hello": self.hello,
            "open": self.open,
            "preprocess": self.preprocess,
            "run": self.run,
            "run_steps": self.run_steps,
            "match": self.match,
            "open_peer": self.open_peer,
            "prepare": self.prepare,
            "time": self.time,
            "layers": self.layers,
            "memory": self.memory,
            "close": self.close,
        }

    def do(self, command: str, arguments: Mapping[str, Any]) -> Answer:
        """Carry out a command. Raises `UsageError` for an unknown one, and what the command raises."""
        found = self.commands().get(command)
        if found is None:
            raise UsageError(f"a worker knows no command {command!r}")
        with self._watch.during(sample=command != "time" or bool(arguments.get("trial"))):
            return found(**arguments)

    @property
    def matcher(self) -> Matcher:
        """The open one. Raises `UsageError`."""
        if self._matcher is None:
            raise UsageError("no bundle is open in this worker")
        return self._matcher

    def hello(self) -> Answer:
        """Show that the process is up."""
        return {"python": platform.python_version()}

    def open(self, bundle: str, context: bool = False, **how: Any) -> Answer:
        """Load a bundle; see `matchrt.load`. `context`: make the CUDA context first, to tell its memory apart."""
        self.close()
        if context:
            self._watch.make_context()
        from matchrt.runtime import load

        watch = _BuildWatch(self._progress)
        begin = time.perf_counter()
        matcher = load(bundle, **how, progress=watch)
        matcher.sessions()
        self._matcher = matcher
        loaded = time.perf_counter() - begin - watch.seconds
        return {
            "name": matcher.name,
            "seconds": {"build": watch.seconds, "load": loaded},
            "versions": versions_of(matcher.backend),
            "device": device_of(matcher, how.get("provider")),
            "settings": {n: matcher.settings[n] for n in matcher.settings},
        }

    def preprocess(self, images: list[dict[str, str]]) -> Answer:
        """Tensors of one pair."""
        from matchrt.images.read import read_image

        image0, image1 = (read_image(_image(i)) for i in images)
        tensors, _ = self.matcher.preprocess(image0, image1, self.matcher.settings)
        return {"arrays": self._put(tensors)}

    def run(self, network: str, tensors: str) -> Answer:
        """One network alone."""
        from matchrt.runtime.steps import run_network

        matcher = self.matcher
        outputs = run_network(matcher.manifest, matcher.sessions(), network, read_arrays(Path(tensors)))
        return {"arrays": self._put(outputs)}

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

    def open_peer(
        self, source: str, options: dict[str, str], bundle: dict[str, Any], tensors: str, device: str, threads: int
    ) -> Answer:
        """Load a published implementation; see `matchrt.workers.peers`."""
        self.close()
        if device.startswith("cuda"):
            self._watch.make_context()
        begin = time.perf_counter()
        call, clock = load_peer(source, options, bundle, read_arrays(Path(tensors)), device, threads)
        self._run = PeerRun(call, clock)
        return {
            "name": source.rpartition("/")[2],
            "seconds": {"build": 0.0, "load": time.perf_counter() - begin},
            "versions": versions_of(),
            "device": device_record(clock.kind),
            "settings": {},
        }

    def prepare(
        self,
        pairs: list[tuple[str, str]],
        batch: int,
        workers: int,
        lanes: int,
        stream_pairs: int,
        processes: bool = False,
    ) -> Answer:
        """Make the open bundle or peer ready for `time`: its first call is done, which compiles and captures what it will."""
        if self._matcher is not None:
            self._run = BundleRun(
                self._matcher,
                pairs,
                batch,
                workers or default_workers(processes),
                lanes,
                stream_pairs,
                processes=processes,
            )
        if self._run is None:
            raise UsageError("nothing is open in this worker")
        begin = time.perf_counter()
        measure(self._run, "engine", runs=1)
        inputs = self._run.tensors
        return {
            "modes": list(self._run.modes),
            "first_call": time.perf_counter() - begin,
            "clock": "device events" if self._run.clock.kind == "cuda" else "wall",
            "inputs": {n: f"{a.dtype}{list(a.shape)}" for n, a in inputs.items()},
        }

    def time(self, mode: str, runs: int | None = None, seconds: float | None = None, trial: bool = False) -> Answer:
        """Samples by part; see `matchrt.workers.timing`. A `trial` follows the peak of the device's memory, which costs it some speed."""
        if self._run is None:
            raise UsageError("nothing is ready to be timed in this worker")
        return {"samples": measure(self._run, mode, runs, seconds)}

    def layers(self, runs: int) -> Answer:
        """Seconds by network and layer; for a bundle opened with the option `layer_times`, and prepared."""
        if not isinstance(self._run, BundleRun):
            raise UsageError("no bundle is ready to be timed in this worker")
        return {"layers": {n: list(times.items()) for n, times in self._run.layers(runs).items()}}

    def memory(self) -> Answer:
        """Peaks so far, in bytes."""
        return {"host_peak": host_peak(), **self._watch.report()}

    def close(self) -> Answer:
        """Close what is open."""
        matcher, self._matcher, self._run = self._matcher, None, None
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
