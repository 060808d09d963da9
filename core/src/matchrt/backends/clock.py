"""How long a device works: by its own events where it has them, else by the wall clock around finished work.

A session may have a method `clock()` that returns a `Clock` for the stream that its work is on; one without it works on the host
and has finished when it returns.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matchrt.backends import Session
    from matchrt.backends.tensorrt.cuda import Driver


class Clock(Protocol):
    """Marks moments in a session's work. `kind` is "cuda" or "cpu"."""

    kind: str

    def mark(self) -> Any:
        """The moment when the work given so far is done."""

    def seconds(self, begin: Any, end: Any) -> float:
        """From one mark to another; both must have passed, see `wait`."""

    def wait(self, mark: Any) -> None:
        """Wait until the moment of `mark` has come."""

    def synchronize(self) -> None:
        """Wait until all work given so far is done."""

    def forget(self, *marks: Any) -> None:
        """Give marks back that are not needed any more."""


class WallClock:
    """For work that is done when the call returns."""

    kind = "cpu"

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def seconds(self, begin: float, end: float) -> float:
        """Difference."""
        return end - begin

    def wait(self, mark: float) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def forget(self, *marks: Any) -> None:
        """Nothing to give back."""


class DriverClock:
    """CUDA events on the calling thread's own stream of `driver`, resolution about half a microsecond."""

    kind = "cuda"

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def mark(self) -> int:
        """An event on the stream."""
        with self._driver.current():
            event = self._driver.event(timing=True)
            self._driver.record(event, self._driver.thread_stream())
            return event

    def seconds(self, begin: int, end: int) -> float:
        """Between two events."""
        with self._driver.current():
            return self._driver.elapsed(begin, end)

    def wait(self, mark: int) -> None:
        """Wait for the event."""
        with self._driver.current():
            self._driver.wait_on_host(mark)

    def synchronize(self) -> None:
        """Wait for the stream."""
        with self._driver.current():
            self._driver.synchronize(self._driver.thread_stream())

    def forget(self, *marks: int) -> None:
        """Free the events."""
        with self._driver.current():
            for event in marks:
                self._driver.free_event(event)


class TorchClock:
    """CUDA events on torch's current stream. Only where torch is loaded."""

    kind = "cuda"

    def __init__(self, device: Any = None) -> None:
        import torch

        self._torch: Any = torch
        self._device = torch.device("cuda" if device is None else device)

    def mark(self) -> Any:
        """An event on the stream."""
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._torch.cuda.current_stream(self._device))
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Between two events."""
        return float(begin.elapsed_time(end)) / 1e3

    def wait(self, mark: Any) -> None:
        """Wait for the event."""
        mark.synchronize()

    def synchronize(self) -> None:
        """Wait for the device."""
        self._torch.cuda.synchronize(self._device)

    def forget(self, *marks: Any) -> None:
        """Dropping them is enough."""


def clock_of(session: Session) -> Clock:
    """The clock of `session`'s work."""
    make = getattr(session, "clock", None)
    clock: Clock = WallClock() if make is None else make()
    return clock
