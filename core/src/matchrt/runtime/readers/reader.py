"""The parent's side of one reader process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from time import perf_counter
from typing import Any

from matchrt.errors import BackendError, error_from_record
from matchrt.images.image import Image
from matchrt.images.read import read_image
from matchrt.model import Settings
from matchrt.plugins.discovery import Found
from matchrt.runtime.prepared import Prepared
from matchrt.runtime.readers.messages import Inbox, Outbox, new_memory
from matchrt.workers.lines import how_it_ended


class Reader:
    """One process that reads and preprocesses pairs for the matcher `matcher_id` of the plugin `owner`. One caller at a time.

    It has the module search path, the environment and, at each call, the current folder of this process. Raises `UsageError` where it
    does not find the same plugin, `BackendError` where it cannot be started.
    """

    def __init__(self, matcher_id: str, owner: Found) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        memory = new_memory()
        try:
            self._process = _start(memory, self._stderr)
        except BaseException:
            self._stderr.close()
            if memory is not None:
                os.close(memory)
            raise
        self._memory = memory
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._out, self._in = Outbox(self._process.stdin), Inbox(self._process.stdout, memory)  # type: ignore[arg-type]
        self.alive = True
        try:
            self._ask(("open", matcher_id, owner))
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        """Process number."""
        return self._process.pid

    def prepare(self, pair: tuple[Any, Any], settings: Settings) -> Prepared:
        """Read and preprocess one pair there. Paths and encoded bytes are read there, anything else here.

        Raises what reading and preprocessing raise, and `BackendError` if the process dies of it.
        """
        begin = perf_counter()
        sources = tuple(_portable(s) for s in pair)
        seconds = perf_counter() - begin
        prepared: Prepared = self._ask(("prepare", _folder(), sources, settings), pair)
        images = tuple(s if isinstance(s, Image) else image for s, image in zip(sources, prepared.images, strict=True))
        timed = {**prepared.seconds, "read": prepared.seconds["read"] + seconds}
        return replace(prepared, images=(images[0], images[1]), seconds=timed)

    def hang_up(self) -> None:
        """Tell the process to end once it is done with what it does."""
        self.alive = False
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]

    def end(self) -> None:
        """End the process, within a second. It may be called twice, and while another thread waits for an answer."""
        self.hang_up()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]  # not before: whoever reads holds it
        self._stderr.close()
        memory, self._memory = self._memory, None
        if memory is not None:
            os.close(memory)

    def _ask(self, question: tuple[Any, ...], pair: tuple[Any, Any] | None = None) -> Any:
        try:
            self._out.send(question)
            kind, answer = self._in.receive()
        except BaseException as error:
            if isinstance(error, Exception) and not self.alive:
                raise BackendError("the matcher was closed while a reader process was at work") from None
            if isinstance(error, (EOFError, BrokenPipeError)):
                raise self._died(pair) from None
            self.end()  # its next message would answer this question, not the next one
            raise
        if kind == "failed":
            raise error_from_record(answer)
        return answer

    def _died(self, pair: tuple[Any, Any] | None) -> BackendError:
        self.hang_up()
        code = self._process.wait()
        self._stderr.seek(0)
        tail = self._stderr.read().decode("utf-8", "replace").strip()[-2000:]
        at = "" if pair is None else f", at {' and '.join(_described(s) for s in pair)},"
        error = BackendError(
            how_it_ended(f"a reader process{at}", code, tail), hint="read in threads to see more: processes=False"
        )
        self.end()
        return error


def _start(memory: int | None, stderr: Any) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command = [sys.executable or "python", "-m", "matchrt.runtime.readers", "" if memory is None else str(memory)]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            pass_fds=() if memory is None else (memory,),
        )
    except OSError as error:
        raise BackendError(
            f"no reader process can be started with {command[0]}: {error.strerror or error}",
            hint="read in threads: processes=False",
        ) from None


def _folder() -> str:
    """The current folder; empty where it was deleted."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _portable(source: Any) -> Any:
    """What another process can read itself, as it is; the decoded image otherwise."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    return read_image(source)


def _described(source: Any) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__
