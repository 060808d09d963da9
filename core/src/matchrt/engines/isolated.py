"""Build in a process of its own: it can be stopped where the builder cannot, and a builder that crashes takes only itself down."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from matchrt import errors
from matchrt.backends.building import BuildingBackend, BuildJob, BuildOutput, IoTensor, Profile
from matchrt.errors import BackendError, MatchrtError
from matchrt.progress import Progress, Silent, stage


def build_isolated(backend: BuildingBackend, job: BuildJob, progress: Progress) -> BuildOutput:
    """As `backend.build`, in a new process that ends with this call. Raises what the build raised, `BackendError` if it died."""
    with tempfile.TemporaryDirectory(prefix=".work-", dir=job.graph.parent) as name:
        folder = Path(name)
        (folder / "timing").write_bytes(job.timing_cache)
        cls = type(backend)
        order = {**asdict(replace(job, timing_cache=b"")), "graph": str(job.graph), "options": dict(job.options)}
        del order["timing_cache"]
        (folder / "job.json").write_text(json.dumps({"backend": f"{cls.__module__}:{cls.__qualname__}", "job": order}))
        with stage(progress, f"build {job.network} in a process of its own"):
            code, tail = _run(folder)
        return _answer(folder, job, code, tail)


def _run(folder: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "matchrt.engines.isolated", str(folder)]
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
        try:
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
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


def _work(folder: Path) -> None:
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
        output = backend.build(job, Silent())
    except MatchrtError as error:
        answer = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    else:
        (folder / "payload").write_bytes(output.payload)
        (folder / "timing").write_bytes(output.timing_cache)
        answer = {"io": [asdict(t) for t in output.io], "messages": output.messages, "notes": output.notes}
    (folder / "answer.tmp").write_text(json.dumps(answer), "utf-8")
    (folder / "answer.tmp").rename(folder / "answer.json")


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
