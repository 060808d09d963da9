"""A reader process: a message in, the pair read and preprocessed, a message out. It ends when its stdin closes."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from matchrt.errors import PluginError, UsageError, error_record
from matchrt.images.image import Image
from matchrt.model import Settings
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.plugins.discovery import Found
from matchrt.runtime.prepared import Prepared, prepare_pair
from matchrt.runtime.readers.messages import Inbox, Outbox
from matchrt.workers.lines import private_stdout_bytes


def main(memory: int | None) -> None:
    """Answer until stdin closes. Messages in: ("open", matcher, plugin), ("prepare", folder, sources, settings); out:
    ("done", answer) or ("failed", the error's record)."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    cv2.setNumThreads(1)  # there is a process for each core that shall work
    inbox, outbox = Inbox(sys.stdin.buffer), Outbox(private_stdout_bytes(), memory)
    desk = _Desk()
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        while True:
            command, *arguments = inbox.receive()
            _answer(outbox, getattr(desk, command), arguments)


def _answer(outbox: Outbox, do: Callable[..., object], arguments: list[Any]) -> None:
    try:
        answer = do(*arguments)
    except Exception as error:
        outbox.send(("failed", error_record(error)))
        return
    try:
        outbox.send(("done", answer))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        lacking = PluginError(
            f"what preprocessing made cannot be sent to another process: {error}",
            hint="read in threads: processes=False",
        )
        outbox.send(("failed", error_record(lacking)))


class _Desk:
    """What a reader process does, one method a command."""

    def open(self, matcher_id: str, owner: Found) -> None:
        """Find the matcher, which must be of the same plugin as the parent's."""
        plugins = get_plugins()
        matcher = plugins.matchers.get(matcher_id)
        found = None if matcher is None else plugins.owner(matcher).found
        if matcher is None or found != owner:
            there = "none" if found is None else f"{found.distribution} {found.version} ({found.value})"
            raise UsageError(
                f"a reader process finds another plugin for matcher {matcher_id!r}: {there}, "
                f"not {owner.distribution} {owner.version} ({owner.value})",
                hint="install the plugin, or read in threads: processes=False",
            )
        self._hooks, self._folder = MatcherHooks(plugins, matcher), ""

    def prepare(self, folder: str, sources: tuple[Any, Any], settings: Settings) -> Prepared:
        """The prepared pair; images that came decoded are not sent back."""
        if folder and folder != self._folder:
            os.chdir(folder)
            self._folder = folder
        prepared = prepare_pair(self._hooks, sources, settings)
        images: Any = tuple(None if isinstance(s, Image) else i for s, i in zip(sources, prepared.images, strict=True))
        return replace(prepared, images=images)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1] else None)
