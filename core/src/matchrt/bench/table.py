"""What a run of `matchrt bench` says, as rows: from its record alone, so that a table in the docs is made from the receipt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
Row = tuple[str, ...]

COLUMNS = (
    "contender",
    "engine ms",
    "against torch",
    "against best other peer",
    "host to host ms",
    "file to matches ms",
    "pairs/s streaming",
    "of engine-only",
    "GPU peak MiB (above context)",
    "against torch",
    "RAM peak MiB",
    "build s",
    "load s",
    "first call s",
)
REFERENCE = "torch"


@dataclass(frozen=True)
class Group:
    """Contenders that did the same work; only these may be compared."""

    bundle: str
    batch: int
    size: tuple[int, ...] = ()
    """Chosen by `--size` or `--sweep size`; empty where the bundle's own."""

    @property
    def title(self) -> str:
        """In words."""
        size = f", {'x'.join(map(str, self.size))}" if self.size else ""
        return f"{self.bundle}{size}" + (f", batch {self.batch}" if self.batch > 1 else "")


def group_of(contender: Record) -> Group:
    """The group of one contender."""
    return Group(contender["bundle"], contender["batch"], tuple(contender.get("swept", {}).get("size", ())))


def groups(run: Record) -> dict[Group, list[Record]]:
    """The contenders of `run` by group, in order."""
    found: dict[Group, list[Record]] = {}
    for contender in run["contenders"]:
        found.setdefault(group_of(contender), []).append(contender)
    return found


def compare(run: Record) -> list[dict[str, Any]]:
    """For every contender of ours that was timed: how many times faster than eager fp32 PyTorch and than the best other peer of its
    group, and its share of the first one's memory; None where the run holds no such contender. Ratios of medians, of one run."""
    answers = []
    for group, members in groups(run).items():
        timed = [m for m in members if engine(m) is not None]
        reference = next((m for m in timed if m["peer"] == REFERENCE), None)
        others = [m for m in timed if m["peer"] and m["peer"] != REFERENCE]
        best = min(others, key=lambda m: engine(m) or 0.0, default=None)
        for member in timed:
            if member["peer"]:
                continue
            answers.append(
                {
                    "bundle": group.bundle,
                    "batch": group.batch,
                    "size": list(group.size),
                    "label": member["label"],
                    "speed_up": _ratio(engine(reference), engine(member)),
                    "best_peer": best["label"] if best else None,
                    "speed_up_best_peer": _ratio(engine(best), engine(member)),
                    "memory_share": _ratio(_above(member), _above(reference)),
                    "memory_share_whole": _ratio(_whole(member), _whole(reference)),
                    "streaming_share": streaming_share(member),
                }
            )
    return answers


def engine(contender: Record | None) -> float | None:
    """Median seconds for one pair, engine only; None if it was not timed."""
    found: float | None = _time(contender, "engine")
    return found


def streaming_share(contender: Record) -> float | None:
    """Throughput from files to matches as a share of the engine's own."""
    return _ratio(engine(contender), _time(contender, "stream"))


def rows(members: Sequence[Record], comparison: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Cells for `COLUMNS`, contender by contender; the best peer bears a star."""
    by_label = {c["label"]: c for c in comparison}
    best = next((c["best_peer"] for c in comparison if c["best_peer"]), None)
    for member in members:
        label = member["label"] + (" *" if member["label"] == best else "")
        if member.get("error"):
            yield (label, "failed: " + str(member["error"]["message"]).splitlines()[0], *[""] * (len(COLUMNS) - 2))
            continue
        ours = by_label.get(member["label"], {})
        stream, memory, seconds = _time(member, "stream"), member["memory"], member["seconds"]
        yield (
            label,
            _spread(member["times"].get("engine")),
            _times(ours.get("speed_up")),
            _times(ours.get("speed_up_best_peer")),
            _spread(member["times"].get("host")),
            _spread(member["times"].get("stages")),
            "" if stream is None else f"{1 / stream:.1f}",
            _percent(streaming_share(member)),
            "" if memory["device_peak"] is None else f"{_mib(memory['device_peak'])} ({_mib(_above(member))})",
            _percent(ours.get("memory_share")),
            _mib(memory["host_peak"]),
            _seconds(seconds["build"]),
            _seconds(seconds["load"]),
            _seconds(seconds["first_call"]),
        )


def part_rows(members: Sequence[Record]) -> Iterator[Row]:
    """(contender, what, ms): each network of the engine's time, and each stage from files to matches."""
    for member in members:
        for mode, name in (("engine", "network"), ("stages", "stage")):
            for part, value in member.get("times", {}).get(mode, {}).items():
                if part not in ("all", "rounds", "runs"):
                    yield member["label"], f"{name} {part}", _spread({"all": value})


def layer_rows(members: Sequence[Record], most: int | None = None) -> Iterator[Row]:
    """(contender, network, layer, ms, share of the network's layers): the slowest layers, `most` of them, and what the others take
    together.
    """
    for member in members:
        for network, told in member.get("layers", {}).items():
            slowest = told["slowest"][:most]
            rest = ("other layers", told["seconds"] - sum(t for _, t in slowest))
            for layer, seconds in (*slowest, *([rest] if told["count"] > len(slowest) else [])):
                share = _percent(_ratio(seconds, told["seconds"]))
                yield member["label"], network, layer, milliseconds(seconds), share


def used_columns(table: Sequence[Row]) -> list[int]:
    """Columns in which some row has something to say."""
    return [i for i in range(len(COLUMNS)) if any(row[i] for row in table)]


def growth(run: Record, axis: str) -> list[dict[str, Any]]:
    """For every contender along `axis` (batch, size, or a setting baked into the bundles): points (x, seconds a call) and slope.

    Sizes count as pixels of one image. Fewer than two different x give no line.
    """
    from matchrt.bench.stats import log_slope

    lines: dict[str, list[tuple[float, float]]] = {}
    for member in run["contenders"]:
        x, y = axis_value(member, axis), engine(member)
        if x is not None and y is not None:
            label = str(member["label"]).partition(", batch ")[0]
            lines.setdefault(f"{member['matcher']} {label}", []).append((x, y * member["batch"]))
    return [
        {"label": label, "points": sorted(points), "slope": log_slope(points)}
        for label, points in lines.items()
        if len({x for x, _ in points}) > 1
    ]


def axis_value(contender: Record, axis: str) -> float | None:
    """Where a contender lies on `axis`; None if it says nothing of it."""
    value = (
        contender["batch"] if axis == "batch" else contender.get("swept", {}).get(axis, contender["baked"].get(axis))
    )
    if isinstance(value, (list, tuple)):
        return float(value[0] * value[1])
    return float(value) if isinstance(value, (int, float)) else None


def _time(contender: Record | None, mode: str) -> float | None:
    found = (contender or {}).get("times", {}).get(mode)
    return None if found is None else float(found["all"]["median"])


def _above(contender: Record | None) -> float | None:
    return _memory(contender, "device_peak_above_context")


def _whole(contender: Record | None) -> float | None:
    return _memory(contender, "device_peak")


def _memory(contender: Record | None, name: str) -> float | None:
    found: float | None = (contender or {}).get("memory", {}).get(name)
    return found


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _spread(times: Record | None) -> str:
    if times is None:
        return ""
    t = times["all"]
    return f"{milliseconds(t['median'])} ({milliseconds(t['q25'])}–{milliseconds(t['q75'])})"


def milliseconds(seconds: float) -> str:
    """Three digits."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}×"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share * 100:.0f} %"


def _mib(count: float | None) -> str:
    return "" if count is None else f"{count / 2**20:.0f}"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
