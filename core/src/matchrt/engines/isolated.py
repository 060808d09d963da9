"""Build in a process of its own: it can be stopped where the builder cannot, and a builder that crashes takes only itself down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from matchrt.backends.building import BuildingBackend, BuildJob, BuildOutput, IoTensor, Profile
from matchrt.errors import BackendError, MatchrtError, error_from_record, error_record
from matchrt.progress import Progress, Silent
from matchrt.workers.lines import Relay, end_with_parent, how_it_ended, private_stdout


class Quiet(Silent):
    """Shows nothing; `stop`, once set, ends the build that reports to it."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop


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
        if isinstance(progress, Quiet):
            threading.Thread(target=_kill_when, args=(progress.stop, process), daemon=True).start()
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


def _kill_when(stop: threading.Event, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        if stop.wait(0.2):
            process.kill()
            return


def _answer(folder: Path, job: BuildJob, code: int, tail: str) -> BuildOutput:
    path = folder / "answer.json"
    if not path.is_file():
        raise BackendError(how_it_ended(f"the builder process of network {job.network!r}", code, tail))
    answer: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    if "error" in answer:
        raise error_from_record(answer)
    return BuildOutput(
        payload=(folder / "payload").read_bytes(),
        io=tuple(IoTensor(**{**t, "shape": tuple(t["shape"])}) for t in answer["io"]),
        messages=tuple(answer["messages"]),
        notes=tuple(answer["notes"]),
        timing_cache=(folder / "timing").read_bytes(),
    )


def _main(folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=end_with_parent, daemon=True).start()
    code = 0
    try:
        _work(folder, Relay(private_stdout()))
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # without the builder's own clean-up, whose threads may still be at work


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
        answer = dict(error_record(error))
    else:
        (folder / "payload").write_bytes(output.payload)
        (folder / "timing").write_bytes(output.timing_cache)
        answer = {"io": [asdict(t) for t in output.io], "messages": output.messages, "notes": output.notes}
    (folder / "answer.tmp").write_text(json.dumps(answer), "utf-8")
    (folder / "answer.tmp").rename(folder / "answer.json")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
