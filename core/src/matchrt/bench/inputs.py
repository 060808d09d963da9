"""What is matched while the clock runs: pairs of image files, and their tensors for peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matchrt.bundle import Bundle, BundleManifest
from matchrt.errors import UsageError
from matchrt.model import Size

Pair = tuple[Path, Path]


def fit_size(manifest: BundleManifest, size: Size) -> dict[str, object]:
    """Match settings that make a bundle run at `size`; none where it is baked in. Raises `UsageError` where it cannot."""
    baked = manifest.settings.get("size")
    if baked is not None:
        if tuple(baked) != size:
            raise UsageError(
                f"this bundle of {manifest.matcher.id} is made for {baked[0]}x{baked[1]}, not {size[0]}x{size[1]}",
                hint=f"convert one for it with --size {size[0]}x{size[1]} and give that bundle",
            )
        return {}
    axes = {a.name: a for a in manifest.axes}
    for side, axis in zip(size, (axes.get("height"), axes.get("width")), strict=True):
        if axis is not None and not (axis.min <= side <= axis.max and side % axis.divisor == 0):
            raise UsageError(f"axis {axis.name} takes {axis.min} to {axis.max} by {axis.divisor}, not {side}")
    chosen: dict[str, object] = {}
    if "input_size" in manifest.match_settings:
        chosen["input_size"] = f"{size[0]}x{size[1]}"
    elif "long_side" in manifest.match_settings:
        chosen["long_side"] = max(size)
    if not chosen and not {"height", "width"} <= axes.keys():
        raise UsageError(f"the size of this bundle of {manifest.matcher.id} cannot be chosen")
    return chosen


def resized(pairs: Sequence[Pair], size: Size, folder: Path) -> list[Pair]:
    """Copies of the images at `size` as JPEG files in `folder`, so that reading them costs what it costs at that size."""
    from PIL import Image

    made = []
    for number, pair in enumerate(pairs):
        both = []
        for side, path in enumerate(pair):
            target = folder / f"{number}-{side}-{size[0]}x{size[1]}.jpg"
            with Image.open(path) as image:
                image.convert("RGB").resize((size[1], size[0])).save(target, quality=95)
            both.append(target)
        made.append((both[0], both[1]))
    return made


def peer_tensors(
    bundle: Bundle, pairs: Sequence[Pair], batch: int, settings: Mapping[str, object]
) -> dict[str, np.ndarray]:
    """What the bundle's own preprocessing makes of the first pair, `batch` times."""
    from matchrt.images.read import read_image
    from matchrt.plugins import MatcherHooks, get_plugins
    from matchrt.runtime.matcher import settings_of

    plugins = get_plugins()
    hooks = MatcherHooks(plugins, plugins.matcher(bundle.manifest.matcher.id))
    chosen = settings_of(hooks, bundle, settings)
    images: Any = tuple(read_image(p) for p in pairs[0])
    tensors, _ = hooks.preprocess(images, chosen)
    return {name: np.concatenate([array] * batch) for name, array in tensors.items()}
