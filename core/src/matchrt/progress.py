"""Progress as seen by long work: named stages with steps. The command line shows bars; a library call shows nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives stages. They may nest: `advance` and `finish` concern the innermost that is open.

    A builder may call from a thread of its own.
    """

    def start(self, stage: str, total: int | None) -> None:
        """A stage begins; `total` steps, or None where that is not known."""

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Steps of the current stage are done."""

    def finish(self) -> None:
        """The current stage is done."""


class Silent:
    """Shows nothing."""

    def start(self, stage: str, total: int | None) -> None:
        """Do nothing."""

    def advance(self, steps: int = 1, detail: str = "") -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


@contextmanager
def stage(progress: Progress, name: str, total: int | None = None) -> Iterator[None]:
    """One stage of `progress`, finished also when the work raises."""
    progress.start(name, total)
    try:
        yield
    finally:
        progress.finish()
