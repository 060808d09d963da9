"""Receipts: JSON files of what was measured, when, on what, by which command. Runs are appended, never changed, never mixed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from matchrt.errors import UsageError
from matchrt.files.atomic import atomic_write_text
from matchrt.workers.machine import machine_record

SCHEMA = 1


def now() -> str:
    """UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def command_line(words: Sequence[str]) -> str:
    """What was typed, with the paths of this machine cut to file names."""
    return " ".join(["matchrt", *(_without_folders(w) for w in words)])


def _without_folders(word: str) -> str:
    head, equals, tail = word.partition("=")
    if equals and os.sep in tail:
        return f"{head}={Path(tail).name}"
    path, found, function = word.partition(".py:")
    if os.sep in path:
        return f"{Path(path).name}{found}{function}"
    return word


def run_record(kind: str, command: str, **content: Any) -> dict[str, Any]:
    """One run: what, when, on what machine, and its content."""
    return {"kind": kind, "date": now(), "command": command, "machine": machine_record(), **content}


def append_run(path: Path, run: dict[str, Any]) -> int:
    """Add `run` to the receipt at `path`, made if need be; how many runs it holds now. Raises `UsageError` for another kind of file."""
    receipt: dict[str, Any] = read_receipt(path) if path.exists() else {"schema": SCHEMA, "runs": []}
    receipt["runs"].append(run)
    atomic_write_text(path, json.dumps(receipt, indent=1) + "\n")
    return len(receipt["runs"])


def read_receipt(path: Path) -> dict[str, Any]:
    """A receipt with its runs. Raises `UsageError`."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no receipt: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("runs"), list):
        raise UsageError(f"{path} is no receipt of `matchrt bench`", hint="name another file with --save")
    return data
