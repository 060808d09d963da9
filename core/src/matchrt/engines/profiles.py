"""Which shapes an engine accepts: from the bundle's axes, narrowed by `--batch` and `--shapes`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matchrt.backends.building import Profile
from matchrt.bundle.manifest import BundleManifest, NetworkContract
from matchrt.errors import UsageError


@dataclass(frozen=True)
class Range:
    """Sizes of one axis; all three equal for a fixed one."""

    min: int
    opt: int
    max: int

    @property
    def fixed(self) -> bool:
        """Whether there is only one size."""
        return self.min == self.max


def parse_range(text: str, what: str) -> Range:
    """ "8" or "1:4:8" (min:opt:max). Raises `UsageError`."""
    try:
        sizes = [int(part) for part in text.split(":")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 3) or sizes != sorted(sizes) or sizes[0] < 1:
        raise UsageError(f"{what} takes N or MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, got {text!r}")
    return Range(sizes[0], sizes[len(sizes) // 2], sizes[-1])


def parse_shapes(texts: Sequence[str]) -> dict[str, Range]:
    """Ranges by axis from texts such as "height=480,width=640" or "height=240:480:960". Raises `UsageError`."""
    ranges: dict[str, Range] = {}
    for part in (p.strip() for text in texts for p in text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise UsageError(
                f"--shapes takes AXIS=N or AXIS=MIN:OPT:MAX, got {part!r}", hint="`matchrt inspect` lists axes"
            )
        ranges[name.strip()] = parse_range(value, f"--shapes {name.strip()}")
    return ranges


def batch_axes(manifest: BundleManifest) -> list[str]:
    """Names of the dynamic axes that count pairs or images: the leading ones whose meaning is "batch"."""
    found = {
        t.shape[0]: None
        for n in manifest.networks
        for t in n.inputs
        if t.shape and isinstance(t.shape[0], str) and t.axes[0] == "batch"
    }
    return [str(name) for name in found]


def axis_ranges(
    manifest: BundleManifest, shapes: Mapping[str, Range] | None = None, batch: Range | None = None
) -> dict[str, Range]:
    """The range of every dynamic axis of the bundle. Raises `UsageError` beyond the bundle's own bounds."""
    ranges = {a.name: Range(a.min, a.opt, a.max) for a in manifest.axes}
    chosen = dict(shapes or {})
    if batch is not None:
        names = batch_axes(manifest)
        if not names:
            fixed = {t.shape[0] for n in manifest.networks for t in n.inputs if t.shape}
            if fixed != {batch.min} or not batch.fixed:
                again = f", or convert again with --set pairs={batch.max}" if "pairs" in manifest.settings else ""
                raise UsageError(
                    f"the bundle's batch is fixed to {', '.join(sorted(map(str, fixed)))}",
                    hint=f"leave --batch out{again}",
                )
        chosen = {**dict.fromkeys(names, batch), **chosen}
    for name, wanted in chosen.items():
        _check(manifest, name, wanted)
        ranges[name] = wanted
    return ranges


def _check(manifest: BundleManifest, name: str, wanted: Range) -> None:
    axes = {a.name: a for a in manifest.axes}
    if name not in axes:
        close = difflib.get_close_matches(name, axes, n=1)
        known = ", ".join(axes) or "none: every size is fixed"
        hint = f"did you mean {close[0]!r}?" if close else f"dynamic axes: {known}"
        raise UsageError(f"the bundle has no dynamic axis {name!r}", hint=hint)
    axis = axes[name]
    sizes = (wanted.min, wanted.opt, wanted.max)
    if wanted.min < axis.min or wanted.max > axis.max or any(s % axis.divisor for s in sizes):
        step = f" in steps of {axis.divisor}" if axis.divisor > 1 else ""
        given = ":".join(map(str, dict.fromkeys(sizes)))
        raise UsageError(f"axis {name!r} of the bundle goes from {axis.min} to {axis.max}{step}; {given} does not fit")


def profiles_of(network: NetworkContract, ranges: Mapping[str, Range]) -> tuple[Profile, ...]:
    """The shapes of every input of `network`, in its order."""

    def sizes(shape: tuple[int | str, ...], which: str) -> tuple[int, ...]:
        return tuple(s if isinstance(s, int) else int(getattr(ranges[s], which)) for s in shape)

    return tuple(
        Profile(t.name, sizes(t.shape, "min"), sizes(t.shape, "opt"), sizes(t.shape, "max")) for t in network.inputs
    )


def frozen_axes(network: NetworkContract, ranges: Mapping[str, Range]) -> dict[str, int]:
    """The dynamic axes of `network` that have one size, for the graph to be frozen to."""
    names = [s for t in network.inputs for s in t.shape if isinstance(s, str)]
    return {n: ranges[n].min for n in dict.fromkeys(names) if ranges[n].fixed}
