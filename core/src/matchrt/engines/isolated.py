"""Build in a process of its own: it can be stopped where the builder cannot, and a builder that crashes takes only itself down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

from matchrt import errors
from matchrt.backends.building import BuildingBackend, BuildJob, BuildOutput, IoTensor, Profile
from matchrt.errors import BackendError, MatchrtError
from matchrt.progress import Progress


def build_isolated(backend: BuildingBackend, job: BuildJob, progress: Progress) -> BuildOutput:
    """As `backend.build`, in a new process that ends with this call. Raises what the build raised, `BackendError` if it died."""
    with tempfile.TemporaryDirectory(prefix=".work-", dir=job.graph.parent) as name:
        folder = Path(name)
        (folder / "timing").write_bytes(job.timing_cache)
        cls = type(backend)
        order = {**asdict(replace(job, timing_cache=b"")), "graph": str(job.graph), "options": dict(job.options)}
        del order["timing_cache"]
        (folder / "job.json").write_text(json.dumps({"backend": f"{cls.__module__}:{cls.__qualname__}", "job": order}))
        code, tail = _run(folder, progress)
        return _answer(folder, job, code, tail)


def _run(folder: Path, progress: Progress) -> tuple[int, str]:
    """Run the child and relay its progress. Whatever interrupts this kills it; it also ends by itself if this process is gone."""
    command = [sys.executable, "-m", "matchrt.engines.isolated", str(folder)]
    depth = 0
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            for line in process.stdout:
                call, arguments = json.loads(line)
                depth += {"start": 1, "finish": -1}.get(call, 0)
                getattr(progress, call)(*arguments)
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            process.stdin.close()
            process.stdout.close()
            for _ in range(depth):
                progress.finish()
    return code, (folder / "stderr").read_text("utf-8", "replace").strip()[-2000:]


def _answer(folder: Path, job: BuildJob, code: int, tail: str) -> BuildOutput:
    path = folder / "answer.json"
    if not path.is_file():
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        last = f": {tail.splitlines()[-1]}" if tail else ""
        raise BackendError(f"the builder process of network {job.network!r} died with {how}{last}")
    answer: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    if "error" in answer:
        kind = getattr(errors, answer["error"], BackendError)
        raise kind(answer["message"], hint=answer["hint"])
    return BuildOutput(
        payload=(folder / "payload").read_bytes(),
        io=tuple(IoTensor(**{**t, "shape": tuple(t["shape"])}) for t in answer["io"]),
        messages=tuple(answer["messages"]),
        notes=tuple(answer["notes"]),
        timing_cache=(folder / "timing").read_bytes(),
    )


class _Relay:
    """Progress as lines of JSON for the parent."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def start(self, stage: str, total: int | None) -> None:
        self._send("start", stage, total)

    def advance(self, steps: int = 1, detail: str = "") -> None:
        self._send("advance", steps, detail)

    def finish(self) -> None:
        self._send("finish")

    def _send(self, call: str, *arguments: object) -> None:
        self._out.write(json.dumps([call, arguments]) + "\n")
        self._out.flush()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # returns when the parent is gone
    os._exit(1)


def _main(folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    relay = _Relay(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what native libraries print is no progress
    _work(folder, relay)
    sys.stderr.flush()
    os._exit(0)  # without the builder's own clean-up, whose threads may still be at work


def _work(folder: Path, progress: Progress) -> None:
    import importlib

    order = json.loads((folder / "job.json").read_text("utf-8"))
    module, _, name = order["backend"].partition(":")
    backend: BuildingBackend = getattr(importlib.import_module(module), name)()
    fields = order["job"]
    profiles = tuple(
        Profile(p["input"], tuple(p["min"]), tuple(p["opt"]), tuple(p["max"])) for p in fields.pop("profiles")
    )
    targets, kept = tuple(fields.pop("targets")), tuple(fields.pop("kept"))
    graph = Path(fields.pop("graph"))
    timing = (folder / "timing").read_bytes()
    answer: dict[str, Any]
    try:
        job = BuildJob(graph=graph, profiles=profiles, timing_cache=timing, targets=targets, kept=kept, **fields)
        output = backend.build(job, progress)
    except MatchrtError as error:
        answer = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    else:
        (folder / "payload").write_bytes(output.payload)
        (folder / "timing").write_bytes(output.timing_cache)
        answer = {"io": [asdict(t) for t in output.io], "messages": output.messages, "notes": output.notes}
    (folder / "answer.tmp").write_text(json.dumps(answer), "utf-8")
    (folder / "answer.tmp").rename(folder / "answer.json")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
