"""Entry module of the plugin: RoMa and MatchAnything-RoMa through matchrt's hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matchrt.hooks import hookimpl
from matchrt.model import (
    ExampleInputs,
    GraphPass,
    MatcherSpec,
    Parity,
    PrecisionRule,
    Settings,
    Target,
    Tolerance,
    Variant,
)
from matchrt_roma.spec import MATCHANYTHING, ROMA

if TYPE_CHECKING:
    import numpy as np
    import torch

    from matchrt.geometry.transform import ImageGeometry
    from matchrt.images.image import Image
    from matchrt.matches import Matches
    from matchrt.patches import Patch
    from matchrt.weights.rules import Rule

MATCHRT_API_VERSION = 1


@hookimpl
def register_matchers() -> Sequence[MatcherSpec]:
    """One network, two matchers with recipes of their own."""
    return [ROMA, MATCHANYTHING]


@hookimpl
def weight_rules() -> Sequence[Rule]:
    """The checkpoint's names, then DINOv2 from its own file."""
    from matchrt_roma.weights import weight_rules as rules

    return rules()


@hookimpl
def settings_from_weights(names: Sequence[str]) -> Mapping[str, object] | None:
    """A RoMa checkpoint decides no setting; a known other network is refused by name."""
    from matchrt_roma.weights import refuse_strangers

    refuse_strangers(names)
    return None


@hookimpl
def build_network(matcher: MatcherSpec, variant: Variant, settings: Settings) -> torch.nn.Module:
    """The owner of all weights; its parts are attributes, made from the weights when they are asked for."""
    from matchrt_roma.build import build

    network: torch.nn.Module = build(matcher, variant, settings)
    return network


@hookimpl
def random_weights(network: torch.nn.Module) -> bool:
    """Weights with which every stage matters."""
    from matchrt_roma.random_weights import fill

    fill(network)
    return True


@hookimpl
def onnx_patches(target: Target) -> Sequence[Patch]:
    """LayerNorm in explicit float32 where the opset has no operator for it."""
    from matchrt.patches import layer_norm_patches

    return layer_norm_patches(target.opset)


@hookimpl
def example_inputs(matcher: MatcherSpec, variant: Variant, settings: Settings) -> Mapping[str, ExampleInputs]:
    """Seeded inputs for every part; sizes are fixed, the number of pairs if the setting `pairs` is 1."""
    from matchrt_roma.build import examples

    return examples(matcher, variant, settings)


@hookimpl
def graph_passes(target: Target) -> Sequence[GraphPass]:
    """Tokens in eights before TensorRT 10, where float32 kernels fail; the float16 ones do not, and gain nothing by it."""
    from matchrt.graph.versions import constrains_layers
    from matchrt_roma.passes import FILL_TOKENS

    return [FILL_TOKENS] if constrains_layers(target) and target.precision != "fp16" else []


@hookimpl
def precision_rules() -> Sequence[PrecisionRule]:
    """The Gaussian process, coordinates, flow and certainty stay in float32."""
    from matchrt_roma.precision import RULES

    return RULES


@hookimpl
def parity() -> Parity:
    """Anchors are chosen by an argmax: one that flips moves a patch of the warp, which is what the outliers allow for.

    The warp is compared as a whole. Which few thousand of its million points are kept is a matter of certainties that crowd at 1, so
    that many may differ where nothing else does.
    """
    flips = Tolerance(atol=2e-3, rtol=1e-3, outliers=0.01)
    return Parity(
        default=Tolerance(atol=1e-3, rtol=1e-3, outliers=0.002),
        tensors=dict.fromkeys(
            ("flow8", "certainty8", "certainty16", "flow", "certainty_low", "warp", "certainty"), flips
        ),
        coordinate_px=0.5,
        shared_matches=0.5,
        pairs=1,
    )


@hookimpl
def preprocess(
    matcher: MatcherSpec, images: tuple[Image, Image], settings: Settings
) -> tuple[Mapping[str, np.ndarray], tuple[ImageGeometry, ImageGeometry]]:
    """Both images at the coarse and at the upsampling size."""
    from matchrt_roma.pair import preprocess_pair

    return preprocess_pair(matcher, images, settings)


@hookimpl
def postprocess(
    tensors: Mapping[str, np.ndarray], geometry: tuple[ImageGeometry, ImageGeometry], settings: Settings
) -> Matches:
    """Matches chosen from the warp, which they carry."""
    from matchrt_roma.pair import postprocess_pair

    return postprocess_pair(tensors, geometry, settings)
