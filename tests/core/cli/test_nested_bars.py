"""Nested stages as bars: an inner one goes when it is done, the outer one stays."""

from __future__ import annotations

from rich.progress import Progress

from matchrt.cli.output import _Bars


def test_inner_bars_go_and_outer_ones_stay() -> None:
    rich = Progress(disable=True)
    bars = _Bars(rich)
    bars.start("build matcher", None)
    bars.start("Building engine", 6)
    bars.advance(2)
    bars.start("Optimizing graph", 30)
    bars.advance(5, "tactics")
    shown = [(t.description, t.completed, t.total) for t in rich.tasks]
    assert shown == [("build matcher", 0, None), ("  Building engine", 2, 6), ("    Optimizing graph tactics", 5, 30)]
    bars.finish()
    bars.finish()
    assert [t.description for t in rich.tasks] == ["build matcher"]
    bars.finish()
    assert rich.tasks[0].finished
    bars.finish()
    bars.start("next", 1)
    assert [t.description for t in rich.tasks] == ["build matcher", "next"]
