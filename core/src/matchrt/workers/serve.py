"""The worker's loop: a line of JSON in, the command done, a line of JSON out.

Lines in: {"command": …, "arguments": {…}}. Lines out: {"answer": {…}}, or {"error": class, "message": …, "hint": …}; before them, any
number of progress calls [call, arguments]. Arrays lie in files in the folder that the parent gave, and gives up with this process.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

from matchrt.errors import error_record
from matchrt.workers.desk import Desk
from matchrt.workers.lines import Relay, private_stdout


def serve(folder: Path) -> None:
    """Answer commands until stdin closes. This process ends at once then, whatever is under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    out = private_stdout()
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    desk = Desk(folder, Relay(out))
    while True:
        _send(out, _do(desk, lines.get()))


def _listen(lines: queue.Queue[bytes]) -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)  # without the libraries' own clean-up, whose threads may still be at work


def _do(desk: Desk, line: bytes) -> dict[str, Any]:
    try:
        order = json.loads(line)
        return {"answer": desk.do(order["command"], order["arguments"])}
    except Exception as error:
        traceback.print_exc()
        return dict(error_record(error))


def _send(out: TextIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()
