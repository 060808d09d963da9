"""Try what may crash in a process of its own, and tell how it ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LIMIT_S = 120.0
"""How long a library may take, in seconds."""
# The child looks for modules where this process does: `-m` or `-c` alone would put the current folder before everything.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from matchrt.doctor.child import main; main(sys.argv[2:])"
)


@dataclass
class Trial:
    """How a trial ended. `died` says that, and at which step, the process did not come to its end."""

    answer: dict[str, Any] = field(default_factory=dict)
    """What it told, also before it died."""
    failures: dict[str, str] = field(default_factory=dict)
    """Steps that raised, and what."""
    done: list[str] = field(default_factory=list)
    """Steps that worked."""
    died: str = ""
    at: str = ""
    """The step at which it died."""

    @property
    def problem(self) -> str:
        """Why it did not work; "" if it did."""
        return self.died or next(iter(self.failures.values()), "")


def attempt(task: str, *arguments: str, limit_s: float | None = None) -> Trial:
    """Run `task` of `matchrt.doctor.child`. Never raises for what happens in there."""
    command = [sys.executable, "-c", _START, json.dumps(sys.path), task, *arguments]
    limit_s = LIMIT_S if limit_s is None else limit_s
    try:
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        trial = _read(error.stdout or b"")
        trial.died = f"did not answer in {limit_s:g} s"
    except OSError as error:
        return Trial(died=f"could not start {sys.executable}: {error.strerror}")
    else:
        trial = _read(ended.stdout)
        if ended.returncode or trial.at:  # a library may also end the process with code 0
            trial.died = _how(ended.returncode, ended.stderr.decode("utf-8", "replace"))
    if trial.died and trial.at:
        trial.died += f" ({trial.at})"
    return trial


def attempt_imports(modules: Sequence[str]) -> dict[str, str]:
    """Import each module, one process for all; "" by module, or why it cannot be imported. After a crash the rest is tried anew."""
    outcome: dict[str, str] = {}
    left = list(modules)
    while left:
        trial = attempt("imports", *left)
        outcome.update(dict.fromkeys(trial.done, "") | trial.failures)
        if trial.died:
            culprit = trial.at if trial.at in left else left[0]
            outcome[culprit] = f"importing it {trial.died.removesuffix(f' ({culprit})')}"
        left = [m for m in left if m not in outcome]
    return outcome


def _how(code: int, stderr: str) -> str:
    if code < 0:
        return f"crashed the process with {signal.Signals(-code).name}"
    lines = stderr.strip().splitlines()
    return f"ended the process with exit code {code}" + (f": {lines[-1][:300]}" if lines else "")


def _read(output: bytes) -> Trial:
    trial = Trial()
    for line in output.splitlines():
        try:
            message: Mapping[str, Any] = json.loads(line)
        except ValueError:
            continue  # cut off
        if "try" in message:
            trial.at = message["try"]
        elif "done" in message:
            trial.done.append(message["done"])
            trial.at = ""
        elif "failed" in message:
            trial.failures[message["failed"]] = message["error"]
            trial.at = ""
        else:
            trial.answer.update(message["answer"])
    return trial
