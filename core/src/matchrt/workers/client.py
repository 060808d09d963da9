"""The caller's side of a worker process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from matchrt.errors import BackendError, EnvironmentLackError, MatchrtError, error_from_record
from matchrt.progress import Progress, Silent
from matchrt.workers.arrays import read_arrays, write_arrays
from matchrt.workers.interpreters import Interpreters, executable
from matchrt.workers.lines import how_it_ended

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a worker says of the bundle that it opened."""

    name: str
    """ "matcher:variant"."""
    seconds: Mapping[str, float]
    """"start" of the process, "build" of engines that were not there (0 if all were), "load"."""
    versions: Mapping[str, str]
    device: Mapping[str, Any]
    """"name" (the GPU's or the processor's), "kind" ("cuda" or "cpu"), and more where known."""
    settings: Mapping[str, Any]


class Worker:
    """One process that loads one bundle and runs it. A context manager: leaving it ends the process, and no other.

    `interpreter` is a Python executable, or a script that stands for one; by default this Python. Every method raises the errors that
    the same call would raise here, and `BackendError` with the last lines of stderr if the process died. One caller at a time.
    """

    def __init__(
        self, interpreter: str | None = None, *, name: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name or "worker"
        self.interpreter = Interpreters().of("") if interpreter is None else executable(interpreter)
        self._environment = {**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"}
        self._folder = tempfile.TemporaryDirectory(prefix="matchrt-worker-")
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0
        self._start_seconds = 0.0
        self._start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def __repr__(self) -> str:
        return f"Worker({self.name!r}, pid {self.pid})"

    @property
    def pid(self) -> int | None:
        """Process number; None once it has ended."""
        return None if self._process is None else self._process.pid

    def open(
        self,
        bundle: str | os.PathLike[str],
        *,
        backend: str = "onnxruntime",
        precision: str = "fp32",
        provider: str | None = None,
        threads: int = 0,
        trust: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        settings: Mapping[str, object] | None = None,
        context: bool = False,
        progress: Progress | None = None,
    ) -> Opened:
        """Load a bundle there, as `matchrt.load` does; a bundle that is open already is closed first.

        `context`: make the CUDA context before anything else, so that `memory` can tell what it takes by itself.
        """
        place = Path(bundle)
        answer = self.ask(
            "open",
            progress,
            bundle=str(place.resolve()) if place.exists() else os.fspath(bundle),
            backend=backend,
            precision=precision,
            provider=provider,
            threads=threads,
            trust=list(trust),
            context=context,
            options=dict(options or {}),
            settings=dict(settings or {}),
        )
        return self._opened(answer)

    def open_peer(
        self,
        source: str,
        options: Mapping[str, str],
        bundle: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        device: str = "cpu",
        threads: int = 0,
    ) -> Opened:
        """Load the function "PATH.py:FUNCTION" there, to be timed; see `matchrt.workers.peers`."""
        path, _, function = source.rpartition(":")
        answer = self.ask(
            "open_peer",
            source=f"{Path(path).resolve()}:{function}",
            options=dict(options),
            bundle=dict(bundle),
            tensors=str(self._put(tensors)),
            device=device,
            threads=threads,
        )
        return self._opened(answer)

    def _opened(self, answer: dict[str, Any]) -> Opened:
        return Opened(**{**answer, "seconds": {"start": self._start_seconds, **answer["seconds"]}})

    def preprocess(self, image0: Any, image1: Any) -> Arrays:
        """The tensors of a pair of images (paths, or uint8 arrays (H, W) or (H, W, 3))."""
        return self._arrays("preprocess", images=[self._image(image0), self._image(image1)])

    def run(self, network: str, tensors: Mapping[str, np.ndarray]) -> Arrays:
        """Outputs of one network."""
        return self._arrays("run", network=network, tensors=str(self._put(tensors)))

    def run_steps(self, tensors: Mapping[str, np.ndarray], wanted: Sequence[str] = ()) -> Arrays:
        """`tensors` with the outputs of every step, or those in `wanted`, as `matchrt.runtime.steps.run_steps` has them."""
        return self._arrays("run_steps", tensors=str(self._put(tensors)), wanted=list(wanted))

    def match(self, image0: Any, image1: Any) -> tuple[Arrays, dict[str, Any]]:
        """`keypoints0`, `keypoints1`, `scores`, and "indices" and the lists behind them where there are; and what else is known:
        "seconds" by stage, "size0", "size1", "notes"."""
        answer = self.ask("match", images=[self._image(image0), self._image(image1)])
        return self._take(answer.pop("arrays")), answer

    def memory(self) -> dict[str, Any]:
        """Peaks so far in bytes: see `matchrt.workers.memory`."""
        return self.ask("memory")

    def close(self) -> None:
        """Close the bundle; the process stays, for another."""
        self.ask("close")

    def ask(self, command: str, progress: Progress | None = None, **arguments: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; stages go to `progress`."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise BackendError(f"{self.name} has ended")
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            process.stdin.flush()
        return self._answer(process, command, progress or Silent())

    def end(self) -> None:
        """End the process. It may be called twice."""
        process, self._process = self._process, None
        if process is not None:
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]
            try:
                process.wait(2)  # stdin is closed: it ends by itself, and takes what a launcher script started with it
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def _start(self) -> None:
        folder = Path(self._folder.name)
        command = [self.interpreter, "-m", "matchrt.workers", str(folder)]
        try:
            with (folder / "stderr").open("wb") as stderr:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=self._environment
                )
            begin = time.perf_counter()
            self.ask("hello")
            self._start_seconds = time.perf_counter() - begin
        except BackendError as error:
            self.end()
            if "No module named 'matchrt'" in error.message:
                raise EnvironmentLackError(
                    f"{self.interpreter} has no matchrt", hint="install it there, or name a script that sets PYTHONPATH"
                ) from None
            raise
        except BaseException:
            self.end()
            raise

    def _answer(self, process: subprocess.Popen[bytes], command: str, progress: Progress) -> dict[str, Any]:
        depth = 0
        assert process.stdout is not None
        try:
            for line in process.stdout:
                message = json.loads(line)
                if isinstance(message, list):
                    call, arguments = message
                    depth += {"start": 1, "finish": -1}.get(call, 0)
                    getattr(progress, call)(*arguments)
                elif "error" in message:
                    raise error_from_record(message)
                else:
                    return dict(message["answer"])
            raise self._died(process, command)
        except MatchrtError:
            raise
        except BaseException:
            self.end()  # its next line would answer this question, not the next one
            raise
        finally:
            for _ in range(depth):
                progress.finish()

    def _died(self, process: subprocess.Popen[bytes], command: str) -> BackendError:
        code = process.wait()
        tail = (Path(self._folder.name) / "stderr").read_text("utf-8", "replace").strip()[-2000:]
        error = BackendError(how_it_ended(f"the process of {self.name}, asked to {command},", code, tail, lines=3))
        self.end()
        return error

    def _arrays(self, command: str, **arguments: Any) -> Arrays:
        return self._take(self.ask(command, **arguments)["arrays"])

    def _take(self, path: str) -> Arrays:
        arrays = read_arrays(Path(path))
        Path(path).unlink()
        return arrays

    def _put(self, arrays: Mapping[str, np.ndarray]) -> Path:
        self._count += 1
        return write_arrays(Path(self._folder.name) / f"in-{self._count}.npz", arrays)

    def _image(self, image: Any) -> dict[str, str]:
        if isinstance(image, (str, os.PathLike)):
            return {"path": str(Path(image).resolve())}
        return {"array": str(self._put({"image": np.asarray(image)}))}
