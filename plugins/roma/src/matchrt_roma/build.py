"""Settings of the matcher to settings of the network, the network, and inputs to trace its parts with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from matchrt.errors import UsageError
from matchrt.model import Axis, ExampleInputs, MatcherSpec, Settings, Variant
from matchrt_roma.settings import RomaConfig, RomaSettings

CONFIG = RomaConfig()
"""The architecture that both matchers are published in."""


def roma_settings(matcher: MatcherSpec, variant: Variant, settings: Settings) -> RomaSettings:
    """The settings of one bundle. Raises `UsageError` for sizes that the network cannot take, or a pass that the variant lacks."""
    size, upsamples = settings.size("size"), settings.flag("upsample")
    assert size is not None
    if upsamples and variant.name != "full":
        raise UsageError(
            f"upsample: variant {variant.name} has no upsampling pass",
            hint=f"leave it out, or convert {matcher.id}:full",
        )
    return RomaSettings(
        variant=variant.name,
        recipe=recipe_of(matcher),
        size=size,
        upsample_size=settings.size("upsample_size") if upsamples else None,
        symmetric=settings.flag("symmetric"),
        leaf=settings.integer("leaf"),
    )


def recipe_of(matcher: MatcherSpec) -> str:
    """How the matcher's images are prepared."""
    return "matchanything" if matcher.id == "matchanything-roma" else "upstream"


def build(matcher: MatcherSpec, variant: Variant, settings: Settings) -> Any:
    """The network in eval mode; its parts are attributes."""
    from matchrt_roma.networks import Roma

    return Roma(roma_settings(matcher, variant, settings), CONFIG).eval()


def examples(matcher: MatcherSpec, variant: Variant, settings: Settings) -> Mapping[str, ExampleInputs]:
    """Seeded inputs of the fixed sizes for every part of the variant: one pair, or two where axis "pairs" is dynamic."""
    shapes = tensor_shapes(roma_settings(matcher, variant, settings))
    most = settings.integer("pairs")
    pairs = {0: Axis(name="pairs", min=1, opt=1, max=most)} if most > 1 else {}
    rng = np.random.default_rng(0)
    found = {}
    for network in matcher.networks_of(variant):
        tensors = {}
        for spec in network.inputs:
            low = -1.0 if spec.name.startswith("flow") else 0.0
            tensors[spec.name] = rng.uniform(low, 1.0, (min(most, 2), *shapes[spec.name])).astype(np.float32)
        found[network.name] = ExampleInputs(tensors=tensors, dynamic=dict.fromkeys(tensors, pairs))
    return found


def tensor_shapes(settings: RomaSettings) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that parts take, of one pair, without the leading axis of pairs."""
    directions = 1 + settings.symmetric
    rows, columns = settings.grid
    shapes: dict[str, tuple[int, ...]] = {
        "images": (2, 3, *settings.size),
        "mean": (directions, CONFIG.gp_dim, rows, columns),
        "flow8": (directions, 2, *settings.map_size(8)),
        "certainty8": (directions, 1, *settings.map_size(8)),
        "certainty16": (directions, 1, rows, columns),
    }
    shapes |= {f"f{s}": (2, CONFIG.projected[s], *settings.map_size(s)) for s in (16, 8, 4, 2, 1)}
    if settings.upsamples:
        high = settings.upsample_map_size(8)
        shapes |= {
            "images_high": (2, 3, *settings.upsample_map_size(1)),
            "flow": (directions, 2, *high),
            "certainty_low": (directions, 1, *high),
        }
    return shapes
