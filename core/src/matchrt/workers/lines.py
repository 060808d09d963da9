"""What child processes share: a stdout that libraries cannot write into, progress as lines, and an end with the parent's."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import BinaryIO, TextIO


def private_stdout() -> TextIO:
    """A private copy of stdout for text. From now on what anything prints, native libraries too, goes to stderr."""
    return os.fdopen(_private_stdout(), "w", encoding="utf-8")


def private_stdout_bytes() -> BinaryIO:
    """As `private_stdout`, for bytes."""
    return os.fdopen(_private_stdout(), "wb")


def _private_stdout() -> int:
    out = os.dup(1)
    sys.stdout.flush()
    os.dup2(2, 1)
    return out


def end_with_parent() -> None:
    """For a thread: end this process at once when stdin closes, because the parent is gone."""
    sys.stdin.buffer.read()
    os._exit(1)


def how_it_ended(what: str, code: int, tail: str, lines: int = 1) -> str:
    """One line that says how the process `what` died, and the last `lines` of its stderr."""
    how = f"signal {_signal_name(-code)}" if code < 0 else f"exit code {code}"
    last = " | ".join(tail.splitlines()[-lines:])
    return f"{what} died with {how}" + (f": {last}" if last else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


class Relay:
    """Progress as lines of JSON for the parent."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def start(self, stage: str, total: int | None) -> None:
        """Relay the call."""
        self._send("start", stage, total)

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Relay the call."""
        self._send("advance", steps, detail)

    def finish(self) -> None:
        """Relay the call."""
        self._send("finish")

    def _send(self, call: str, *arguments: object) -> None:
        self._out.write(json.dumps([call, arguments]) + "\n")
        self._out.flush()
