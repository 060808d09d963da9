"""Settings of the matcher to settings of the graph, and the network that has them."""

from __future__ import annotations

import numpy as np

from matchrt.errors import UsageError
from matchrt.model import Axis, ExampleInputs, MatcherSpec, Settings, Variant
from matchrt_eloftr.networks import EfficientLoFTR, GraphSettings
from matchrt_eloftr.networks.config import TOP_K_LIMIT
from matchrt_eloftr.spec import LARGEST, SMALLEST


def graph_settings(matcher: MatcherSpec, variant: Variant, settings: Settings) -> GraphSettings:
    """What is constant in the graph. Raises `UsageError` for settings that exclude each other."""
    size = settings.size("size")
    assert size is not None
    mutual, dynamic = settings.flag("mutual"), settings.flag("dynamic")
    if dynamic and not all(SMALLEST <= side <= LARGEST for side in size):
        raise UsageError(f"size {size[0]}x{size[1]}: a bundle with dynamic sizes takes {SMALLEST} to {LARGEST} a side")
    largest = (LARGEST, LARGEST) if dynamic else size
    return GraphSettings(
        size0=largest,
        size1=largest,
        smallest=(SMALLEST, SMALLEST) if dynamic else None,
        score="similarity" if variant.name == "opt" else "dual-softmax",
        mutual=mutual,
        per_row=1 if mutual else settings.integer("per_row"),
        top_k=None if settings["slots"] is None else min(settings.integer("slots"), TOP_K_LIMIT),
        score_floor=settings.number("score_floor"),
        valid="input",
    )


def build(matcher: MatcherSpec, variant: Variant, settings: Settings) -> EfficientLoFTR:
    """The network in eval mode, in the form of the checkpoint."""
    deploy = settings.text("form") == "deploy"
    return EfficientLoFTR(graph_settings(matcher, variant, settings), deploy=deploy).eval()


def example(settings: Settings) -> ExampleInputs:
    """Two pairs of seeded noise with different valid rectangles, or one if `pairs` is 1.

    Axis "pairs" is dynamic, and with setting `dynamic` height and width too.
    """
    size = settings.size("size")
    assert size is not None
    most = settings.integer("pairs")
    batch = min(most, 2)
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {f"image{i}": rng.random((batch, 1, *size), dtype=np.float32) for i in (0, 1)}
    smaller = (max(32, size[0] // 64 * 32), size[1])
    tensors["valid0"] = np.array([size, smaller][:batch], np.int32)
    tensors["valid1"] = np.array([smaller, size][:batch], np.int32)
    pairs = {0: Axis(name="pairs", min=1, opt=1, max=most)} if most > 1 else {}
    sides = {}
    if settings.flag("dynamic"):
        sides = {
            axis: Axis(name=name, min=SMALLEST, opt=size[axis - 2], max=LARGEST, divisor=32)
            for axis, name in ((2, "height"), (3, "width"))
        }
    return ExampleInputs(
        tensors=tensors,
        dynamic={name: {**pairs, **sides} if name.startswith("image") else pairs for name in tensors},
    )
