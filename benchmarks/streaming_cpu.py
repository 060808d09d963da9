"""What a host can feed to a GPU, measured without one: streaming from image files to matches on a pretended device.

The device (`pretend_device.c`, compiled here) is busy for `--engine-ms` a pair, without a core and without Python's lock, and everything
else is real: reading, preprocessing, matchrt's TensorRT session with its copies, events and graphs, the stream. Streaming that takes
longer than the engine is held up by the host. Results are empty: the device computes nothing.

    python benchmarks/streaming_cpu.py BUNDLE --engine-ms 3.8 --workers 8 --seconds 5 [--json OUT.json]
    PYTHONPATH=OLDER/core/src:OLDER/plugins/…/src python benchmarks/streaming_cpu.py …     another checkout's code

Prints one JSON object; times are milliseconds a pair, medians of `--rounds`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from matchrt.backends.tensorrt import cuda as cuda_module
from matchrt.backends.tensorrt.runtime import TensorRtEngine
from matchrt.bundle import Bundle, read_bundle
from matchrt.bundle.manifest import NetworkContract
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.runtime.matcher import Matcher
from matchrt.samples import sample_pairs

TYPES = {"float32": "FLOAT", "float16": "HALF", "int32": "INT32", "int64": "INT64", "bool": "BOOL", "uint8": "UINT8"}


def pretend_driver(folder: Path) -> Any:
    """The compiled device as a driver library."""
    library = folder / "libpretend.so"
    source = Path(__file__).with_name("pretend_device.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-pthread", "-o", library, source], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.pretend_work.argtypes = (ctypes.c_void_p, ctypes.c_double)
    return loaded


class PretendEngine:
    """What a session asks of TensorRT's engine and context, for one network that takes `seconds`."""

    def __init__(self, contract: NetworkContract, seconds: float, library: Any) -> None:
        self._io = {t.name: t for t in (*contract.inputs, *contract.outputs)}
        self._inputs = {t.name for t in contract.inputs}
        self._seconds, self._library, self._batch = seconds, library, 1
        self.num_io_tensors = len(self._io)
        self.active_optimization_profile = 0

    def create_execution_context(self) -> PretendEngine:
        """The engine stands for its context, too."""
        return self

    def get_tensor_name(self, index: int) -> str:
        return list(self._io)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in self._inputs else "OUTPUT"

    def get_tensor_location(self, name: str) -> str:
        return "DEVICE"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=TYPES[self._io[name].dtype])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(s if isinstance(s, int) else self._batch for s in self._io[name].shape)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._batch = shape[0]
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def execute_async_v3(self, stream: int) -> bool:
        return bool(self._library.pretend_work(stream, self._seconds) == 0)


class PretendBackend:
    """Opens a bundle on the pretended device; a pair takes `seconds`, divided evenly among the steps."""

    name = "tensorrt"

    def __init__(self, seconds: float, library: Any) -> None:
        self._seconds, self._library = seconds, library

    def open_bundle(
        self, bundle: Bundle, hooks: MatcherHooks, precision: str, options: dict[str, Any]
    ) -> dict[str, TensorRtEngine]:
        """One engine a network."""

        @contextmanager
        def capture() -> Iterator[list[Any]]:
            yield []

        api: Any = SimpleNamespace(
            name="pretended",
            has=lambda capability: False,
            enum=lambda kind, name: name,
            log=SimpleNamespace(capture=capture),
        )
        each = self._seconds / len(bundle.manifest.steps)
        return {
            n.name: TensorRtEngine(
                api, n.name, None, PretendEngine(n, each, self._library), cuda_module.driver(), {"memory": "driver"}
            )
            for n in bundle.manifest.networks
        }


def threaded(job: Callable[[], object], threads: int, count: int) -> dict[str, float]:
    """Wall and CPU milliseconds and page faults a call of `job`, called `count` times in all by `threads`."""

    def work() -> None:
        for _ in range(count // threads):
            job()

    pool = [threading.Thread(target=work) for _ in range(threads)]
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    made = count // threads * threads
    user, system = (getattr(after, n) - getattr(before, n) for n in ("ru_utime", "ru_stime"))
    return {
        "wall": 1e3 * wall / made,
        "user": 1e3 * user / made,
        "system": 1e3 * system / made,
        "faults": (after.ru_minflt - before.ru_minflt) / made,
    }


def streamed(matcher: Matcher, pairs: list[Any], args: argparse.Namespace) -> dict[str, float]:
    """As `threaded`, for a stream that runs for about `--seconds`, its first pairs left out."""
    skip, count, begin = 4 * args.workers, 0, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF)
    stream = matcher.match_many(
        cycle(pairs), batch_size=args.batch, workers=args.workers, lanes=args.lanes, processes=args.processes
    )
    for number, _ in enumerate(stream):
        if number == skip:
            begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        elif number > skip:
            count += 1
            if time.perf_counter() - begin > args.seconds:
                break
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    stream.close()  # type: ignore[attr-defined]
    cpu = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return {
        "wall": 1e3 * wall / count,
        "cpu": 1e3 * cpu / count,
        "system": 1e3 * (after.ru_stime - before.ru_stime) / count,
        "faults": (after.ru_minflt - before.ru_minflt) / count,
        "pairs": count,
    }


def median(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each value."""
    return {n: round(statistics.median(r[n] for r in rounds), 3) for n in rounds[0]}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--engine-ms", type=float, default=3.8)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", action="store_true", help="processes that read, one a worker")
    parser.add_argument("--json")
    args = parser.parse_args()
    pairs = [(str(p.image0), str(p.image1)) for p in sample_pairs()]
    with tempfile.TemporaryDirectory() as folder:
        library = pretend_driver(Path(folder))
        cuda_module.load_driver = lambda: library
        bundle = read_bundle(Path(args.bundle))
        hooks = MatcherHooks(get_plugins(), get_plugins().matcher(bundle.manifest.matcher.id))
        backend: Any = SimpleNamespace(name="tensorrt", create=lambda: PretendBackend(args.engine_ms / 1e3, library))
        with Matcher(bundle, hooks, backend) as matcher:
            turns = cycle(pairs)

            def prepare() -> None:
                matcher.prepare(*next(turns))

            def host() -> None:
                matcher(*pairs[0])

            for pair in islice(cycle(pairs), 8):
                matcher(*pair)
            found: dict[str, list[dict[str, float]]] = {}
            for _ in range(args.rounds):
                for threads in (1, 2, args.workers):
                    found.setdefault(f"prepare, {threads} threads", []).append(threaded(prepare, threads, 64))
                found.setdefault("one after another", []).append(threaded(host, 1, 64))
                found.setdefault("stream", []).append(streamed(matcher, pairs, args))
            answer = {"bundle": matcher.name, "engine": args.engine_ms, **{n: median(v) for n, v in found.items()}}
    print(json.dumps(answer, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
