"""Plots of a run, from its record alone. The one module that imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matchrt.bench.table import groups, growth, milliseconds
from matchrt.errors import EnvironmentLackError


def require_matplotlib() -> None:
    """Raise `EnvironmentLackError` where it is not installed."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise EnvironmentLackError(
            "--plot needs matplotlib, which is not installed", hint="pip install 'matchrt[plot]'"
        )


def plot_run(run: Mapping[str, Any], path: Path, sweep: str | None = None) -> None:
    """Bars of the engine's time by bundle and batch, or with `sweep` lines of time over that axis; written to `path`."""
    require_matplotlib()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure = _lines(pyplot, run, sweep) if sweep else _bars(pyplot, run)
    figure.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": None} if path.suffix == ".png" else None)
    pyplot.close(figure)


def _bars(pyplot: Any, run: Mapping[str, Any]) -> Any:
    parts = {g: [m for m in members if "times" in m] for g, members in groups(run).items()}
    parts = {g: members for g, members in parts.items() if members}
    heights = [len(members) + 1 for members in parts.values()] or [1]
    figure, axes = pyplot.subplots(
        len(heights), 1, squeeze=False, figsize=(9, 0.45 * sum(heights) + 0.8), gridspec_kw={"height_ratios": heights}
    )
    for axis, (group, members) in zip(axes[: len(parts), 0], parts.items(), strict=True):
        times = [m["times"]["engine"]["all"] for m in members]
        middles = [t["median"] * 1e3 for t in times]
        spread = [[m - t["q25"] * 1e3 for m, t in zip(middles, times, strict=True)]]
        spread += [[t["q75"] * 1e3 - m for m, t in zip(middles, times, strict=True)]]
        colours = ["#8a8f98" if m["peer"] else "#2b6cb0" for m in members]
        bars = axis.barh([m["label"] for m in members], middles, xerr=spread, color=colours)
        axis.bar_label(bars, labels=[milliseconds(t["median"]) for t in times], padding=4)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(group.title, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(
        f"milliseconds for one pair, engine only, median and quartiles\n{_device(run['contenders'])}"
    )
    return figure


def _lines(pyplot: Any, run: Mapping[str, Any], sweep: str) -> Any:
    figure, axis = pyplot.subplots(figsize=(7, 4.5))
    for line in growth(run, sweep):
        x, y = zip(*line["points"], strict=True)
        axis.plot(x, [v * 1e3 for v in y], marker="o", label=f"{line['label']}: slope {line['slope']:.2f}")
    axis.set(xscale="log", yscale="log", ylabel="milliseconds a call, engine only, median")
    axis.set_xlabel(f"{sweep}{' (pixels of an image)' if sweep == 'size' else ''}\n{_device(run['contenders'])}")
    axis.grid(True, which="both", alpha=0.3)
    if axis.lines:
        axis.legend()
    return figure


def _device(contenders: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(c["device"]["name"] for c in contenders if "device" in c))
