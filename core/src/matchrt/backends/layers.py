"""Seconds of a network's layers, as its backend tells them: for sessions opened with the option `layer_times`."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median


class LayerTimes:
    """Collects layer by layer, run by run. A name that comes twice in a run counts as one layer with the sum of both."""

    def __init__(self) -> None:
        self._runs: list[dict[str, float]] = []
        self._current: dict[str, float] = {}

    def add(self, layer: str, seconds: float) -> None:
        """`layer` took `seconds` in the run under way."""
        self._current[layer] = self._current.get(layer, 0.0) + seconds

    def end_run(self) -> None:
        """What was added since the last end is one run; nothing added is no run."""
        if self._current:
            self._runs.append(self._current)
            self._current = {}

    def medians(self) -> Mapping[str, float]:
        """Median seconds by layer, in order of the first run."""
        return {layer: median(run.get(layer, 0.0) for run in self._runs) for layer in (self._runs or [{}])[0]}
