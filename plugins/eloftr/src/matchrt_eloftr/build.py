"""Settings of the matcher to settings of the graph, and the network that has them."""

from __future__ import annotations

import numpy as np

from matchrt.model import Axis, ExampleInputs, MatcherSpec, Settings, Variant
from matchrt_eloftr.networks import EfficientLoFTR, GraphSettings
from matchrt_eloftr.networks.config import TOP_K_LIMIT


def graph_settings(matcher: MatcherSpec, variant: Variant, settings: Settings) -> GraphSettings:
    """What is constant in the graph. Raises `UsageError` for settings that exclude each other."""
    size = settings.size("size")
    assert size is not None
    mutual = settings.flag("mutual")
    return GraphSettings(
        size0=size,
        size1=size,
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
    """Two pairs (one, if `pairs` is 1) of seeded noise with different valid rectangles; axis "pairs" is dynamic."""
    size = settings.size("size")
    assert size is not None
    most = settings.integer("pairs")
    batch = min(most, 2)
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {f"image{i}": rng.random((batch, 1, *size), dtype=np.float32) for i in (0, 1)}
    smaller = (max(32, size[0] // 64 * 32), size[1])
    tensors["valid0"] = np.array([size, smaller][:batch], np.int32)
    tensors["valid1"] = np.array([smaller, size][:batch], np.int32)
    axes = {0: Axis(name="pairs", min=1, opt=1, max=most)} if most > 1 else {}
    return ExampleInputs(tensors=tensors, dynamic=dict.fromkeys(tensors, axes))
