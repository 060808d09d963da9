"""Settings of the matcher to settings of the graph, and the network that has them."""

from __future__ import annotations

import numpy as np

from matchrt.model import ExampleInputs, MatcherSpec, Settings, Variant
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
    """One pair of seeded noise with two different valid rectangles; every size is fixed, the batch too."""
    size = settings.size("size")
    assert size is not None
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {f"image{i}": rng.random((1, 1, *size), dtype=np.float32) for i in (0, 1)}
    tensors["valid0"] = np.array([size], np.int32)
    tensors["valid1"] = np.array([(max(32, size[0] // 64 * 32), size[1])], np.int32)
    return ExampleInputs(tensors=tensors)
