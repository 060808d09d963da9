"""Example inputs of both networks and the axes that may vary; numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matchrt.model import Axis, ExampleInputs
from matchrt_lightglue.variants import Variant, find_variant


@dataclass(frozen=True)
class ExampleSettings:
    """What the exported graphs leave open.

    `max_keypoints`: K of the extractor. `size`: network (height, width) to fix, None for a dynamic one. `batch`:
    pairs (or images) to fix, None for a dynamic number. `keypoints_vary`: the matcher's K0 and K1 are dynamic.
    `equal_counts`: K0 and K1 are one number, as after a fixed-K extractor; only looked at when they vary.
    """

    max_keypoints: int = 1024
    size: tuple[int, int] | None = None
    batch: int | None = None
    keypoints_vary: bool = False
    equal_counts: bool = True


def example_inputs(variant: str, settings: ExampleSettings | None = None) -> dict[str, ExampleInputs]:
    """Examples for the networks `extractor` and `matcher`; deterministic.

    The example sizes differ from each other and from 1, because a size of 1 or two equal ones would be taken for
    constants or for one axis. Raises `UsageError` for an unknown variant.
    """
    sizes = find_variant(variant)
    settings = settings or ExampleSettings()
    return {"extractor": _extractor(settings), "matcher": _matcher(sizes, settings)}


def _extractor(settings: ExampleSettings) -> ExampleInputs:
    batch = settings.batch or 2
    height, width = settings.size or (96, 128)
    image = np.random.default_rng(0).random((batch, 1, height, width), dtype=np.float32)
    inputs: dict[str, NDArray[Any]] = {
        "image": image,
        "scale": np.ones((batch, 2), np.float32),
        "valid_size": np.tile(np.array([height, width], np.int32), (batch, 1)),
    }
    axes: dict[str, dict[int, Axis]] = {name: {} for name in inputs}
    if settings.batch is None:
        for name in inputs:
            axes[name][0] = Axis(name="images", min=1, opt=2, max=32)
    if settings.size is None:
        axes["image"] |= {
            2: Axis(name="height", min=8, opt=768, max=4096, divisor=8),
            3: Axis(name="width", min=8, opt=1024, max=4096, divisor=8),
        }
    return ExampleInputs(tensors=inputs, dynamic=axes)


def _matcher(sizes: Variant, settings: ExampleSettings) -> ExampleInputs:
    batch, most = settings.batch or 2, settings.max_keypoints
    free = settings.keypoints_vary and not settings.equal_counts
    rng = np.random.default_rng(1)
    inputs: dict[str, NDArray[Any]] = {}
    axes: dict[str, dict[int, Axis]] = {}
    for i, image_size in enumerate([(480, 640), (600, 400)]):
        count = min(most, 96 + 16 * i * free) if settings.keypoints_vary else most
        keypoints = rng.random((batch, count, 2)) * [image_size[1], image_size[0]]
        descriptors = rng.standard_normal((batch, count, sizes.descriptor_dim))
        descriptors /= np.linalg.norm(descriptors, axis=-1, keepdims=True)
        inputs[f"keypoints{i}"] = keypoints.astype(np.float32)
        inputs[f"descriptors{i}"] = descriptors.astype(np.float32)
        inputs[f"count{i}"] = np.full(batch, count - count // 4, np.int32)
        inputs[f"size{i}"] = np.tile(np.array(image_size, np.float32), (batch, 1))
        axes |= {f"{name}{i}": {} for name in ("keypoints", "descriptors", "count", "size")}
        if settings.keypoints_vary:
            axis = Axis(name=f"keypoints{i}" if free else "keypoints", min=1, opt=most, max=max(most, 4096))
            axes[f"keypoints{i}"][1] = axes[f"descriptors{i}"][1] = axis
    if settings.batch is None:
        for name in inputs:
            axes[name][0] = Axis(name="pairs", min=1, opt=1, max=16)
    return ExampleInputs(tensors=inputs, dynamic=axes)
