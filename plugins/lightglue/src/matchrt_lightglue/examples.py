"""Example inputs of both networks and the axes that may vary; numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from matchrt_lightglue.variants import Variant, find_variant


class Axis(NamedTuple):
    """A dynamic axis. Axes of one name vary together; sizes should be multiples of `divisor`."""

    name: str
    min: int
    opt: int
    max: int
    divisor: int = 1


@dataclass(frozen=True)
class Example:
    """What an export of one network needs; `inputs` and `outputs` are in the order of the network's arguments."""

    inputs: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...]
    axes: Mapping[str, Mapping[int, Axis]]
    """Input name to {axis index: axis}; what is absent is fixed at the example's size."""


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


MATCHER_INPUTS = tuple(f"{name}{i}" for i in (0, 1) for name in ("keypoints", "descriptors", "count", "size"))
"""Inputs of the matcher network, in order."""


def example_inputs(variant: str, settings: ExampleSettings | None = None) -> dict[str, Example]:
    """Examples for the networks `extractor` and `matcher`; deterministic.

    The example sizes differ from each other and from 1, because a size of 1 or two equal ones would be taken for
    constants or for one axis. Raises `UsageError` for an unknown variant.
    """
    sizes = find_variant(variant)
    settings = settings or ExampleSettings()
    return {"extractor": _extractor(settings), "matcher": _matcher(sizes, settings)}


def _extractor(settings: ExampleSettings) -> Example:
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
            axes[name][0] = Axis("images", 1, 2, 32)
    if settings.size is None:
        axes["image"] |= {2: Axis("height", 8, 768, 4096, 8), 3: Axis("width", 8, 1024, 4096, 8)}
    return Example(inputs, ("keypoints", "scores", "descriptors", "count"), axes)


def _matcher(sizes: Variant, settings: ExampleSettings) -> Example:
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
            axis = Axis(f"keypoints{i}" if free else "keypoints", 1, most, max(most, 4096))
            axes[f"keypoints{i}"][1] = axes[f"descriptors{i}"][1] = axis
    if settings.batch is None:
        for name in inputs:
            axes[name][0] = Axis("pairs", 1, 1, 16)
    return Example(inputs, ("matches0", "scores0"), axes)
