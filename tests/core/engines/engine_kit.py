"""A backend that builds fast and watches itself, for tests of cache and build; also run in processes of their own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matchrt.backends.building import BuildJob, BuildOutput, Identity, IoTensor, Profile
from matchrt.engines.cache import EngineCache, Fresh
from matchrt.engines.spec import EngineSpec
from matchrt.errors import BackendError
from matchrt.model import Target
from matchrt.progress import Progress

IO = (IoTensor(name="x", kind="input", dtype="float32", shape=(-1, 3)),)


def spec(**changes: Any) -> EngineSpec:
    """A specification with every field filled."""
    fields: dict[str, Any] = {
        "graph_sha256": "a" * 64,
        "backend": "tensorrt",
        "backend_version": "10.3.0.26",
        "precision": "fp16",
        "profiles": (Profile("x", (1, 3), (2, 3), (4, 3)),),
        "options": (("level", 3), ("tf32", False)),
        "kept_sha256": "b" * 64,
        "compute_capability": "8.9",
        "gpu": "NVIDIA L4",
        "targets": (),
        "platform": "linux-x86_64",
    }
    return EngineSpec(**{**fields, **changes})


def origin(network: str = "net") -> dict[str, Any]:
    """Where an engine came from."""
    return {
        "network": network,
        "bundle_sha256": "c" * 64,
        "matcher": "m:v",
        "code_sha256": "d" * 64,
        "request": "e" * 64,
    }


def fresh(payload: bytes = b"engine " * 1000) -> Fresh:
    """A built engine."""
    return Fresh(payload, {"io": [t.to_dict() for t in IO], "built": {"seconds": 0.1, "messages": []}})


class KitBackend:
    """Counts its builds in a file; ends in whatever way `MATCHRT_KIT` says."""

    name = "kit"
    isolates = False
    runs_as_is: frozenset[str] = frozenset()

    def identity(self, targets: Sequence[str]) -> Identity:
        return Identity(version="1.2.3.4", compute_capability="8.9", gpu="Kit GPU", platform="linux-test")

    def target(self, precision: str) -> Target:
        return Target(backend="onnxruntime", precision=precision)

    def options(self, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"level": 3, **chosen}

    def build(self, job: BuildJob, progress: Progress) -> BuildOutput:
        how = os.environ.get("MATCHRT_KIT", "")
        if how == "die":
            os.kill(os.getpid(), 9)
        if how == "fail":
            raise BackendError("the kit refuses", hint="as it was told")
        if how == "timings" and job.timing_cache:
            raise BackendError("cannot build: The timing cache will not be used!\n  no implementation for node x")
        if how == "sleep":
            _sleep(job.network)
        payload = b"built " + job.graph.read_bytes()[:1000]
        return BuildOutput(
            payload=payload, io=IO, messages=("careful",), notes=("by the kit",), timing_cache=job.timing_cache + b"t"
        )

    def merge_timing(self, theirs: bytes, fresh: bytes) -> bytes:
        return theirs + fresh


def _sleep(network: str) -> None:
    """Leave a mark with the process's id, then sleep; the network that is to fail does so once another sleeps."""
    marks = Path(os.environ["MATCHRT_KIT_MARKS"])
    if network == os.environ.get("MATCHRT_KIT_FAILS"):
        while not pids(marks):
            time.sleep(0.02)
        raise BackendError("the kit refuses", hint="as it was told")
    writing = marks / f".{network}"
    writing.write_text(str(os.getpid()))
    writing.rename(marks / network)
    time.sleep(60)


def pids(marks: Path) -> list[int]:
    """Ids of the processes that left a mark."""
    return [int(p.read_text()) for p in marks.iterdir() if not p.name.startswith(".")]


def main() -> None:
    """`engine_kit.py ROOT SECONDS SIZE LOG`: build one engine slowly in small writes, as a killable process."""
    root, seconds, size, log = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])

    def build() -> Fresh:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return fresh(bytes(range(256)) * (size // 256))

    print("ready", flush=True)
    entry, hit = EngineCache(root).get_or_build(spec(), origin(), build)
    print(entry.sha256, hit, flush=True)


if __name__ == "__main__":
    main()
