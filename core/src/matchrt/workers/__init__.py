"""Processes that load bundles and run them, under any Python interpreter: memory, CUDA contexts and crashes stay apart.

`Worker` is the caller's side; `python -m matchrt.workers` is the process, which speaks lines of JSON on stdin and stdout.
"""

from __future__ import annotations

from matchrt.workers.client import Opened, Worker
from matchrt.workers.interpreters import Interpreters

__all__ = ["Interpreters", "Opened", "Worker"]
