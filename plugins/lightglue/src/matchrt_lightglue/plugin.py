"""Entry module of the plugin: SuperPoint + LightGlue through matchrt's hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matchrt.hooks import hookimpl
from matchrt.model import (
    Alignment,
    ExampleInputs,
    MatcherSpec,
    Parity,
    PrecisionRule,
    Settings,
    Target,
    Tolerance,
    Variant,
)
from matchrt_lightglue.spec import MATCHER_SPEC

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
    """The one matcher of this plugin."""
    return [MATCHER_SPEC]


@hookimpl
def weight_rules(variant: Variant) -> Sequence[Rule]:
    """From the cvg, release, Lightning, kornia and HF namings to `extractor.…` and `matcher.…`."""
    from matchrt_lightglue.weights import weight_rules as rules

    return rules(variant.name)


@hookimpl
def build_network(variant: Variant, settings: Settings) -> torch.nn.Module:
    """A module with the children `extractor` and `matcher`."""
    from matchrt_lightglue.build import build

    return build(variant.name, settings)


@hookimpl
def random_weights(network: torch.nn.ModuleDict) -> bool:
    """Weights that find keypoints and match them."""
    from matchrt_lightglue.random_weights import fill

    fill(network)
    return True


@hookimpl
def onnx_patches(target: Target) -> Sequence[Patch]:
    """Forms that builders compute fast, and LayerNorm in explicit float32 where the opset has no operator for it."""
    from matchrt.patches import decomposed_layer_norm
    from matchrt_lightglue.patches import first_layer, packed_attention

    return [first_layer(), packed_attention(), *([decomposed_layer_norm()] if target.opset < 17 else [])]


@hookimpl
def example_inputs(variant: Variant, settings: Settings) -> Mapping[str, ExampleInputs]:
    """Two pairs of seeded inputs; batch and, without a fixed size, height and width stay dynamic."""
    from matchrt_lightglue.examples import ExampleSettings
    from matchrt_lightglue.examples import example_inputs as examples

    return examples(
        variant.name, ExampleSettings(max_keypoints=settings.integer("keypoints"), size=settings.size("size"))
    )


@hookimpl
def precision_rules() -> Sequence[PrecisionRule]:
    """Detector logits, positions and the assignment stay in float32."""
    from matchrt_lightglue.precision import RULES

    return RULES


@hookimpl
def parity() -> Parity:
    """Detections are a list whose order is open where scores tie; one match in 200 may flip on a tie.

    Scores are exponentials, so an error of the logits is a relative error of the score; random weights give scores near 1e-5,
    where an absolute tolerance would accept anything.
    """
    flips = Tolerance(atol=1e-7, rtol=2e-3, outliers=0.005)
    indices = Tolerance(outliers=0.005, spare=2)
    return Parity(
        default=Tolerance(atol=1e-4, rtol=1e-4, outliers=0.005),
        tensors={"keypoints": Tolerance(atol=1e-3, rtol=0, outliers=0.005), "matches0": indices, "scores0": flips},
        align={"extractor": Alignment(points="keypoints", count="count")},
        choices={"scores0": "matches0"},
        coordinate_px=0.05,
        shared_matches=0.99,
    )


@hookimpl
def preprocess(
    images: tuple[Image, Image], settings: Settings
) -> tuple[Mapping[str, np.ndarray], tuple[ImageGeometry, ImageGeometry]]:
    """Grey, scaled and padded images."""
    from matchrt_lightglue.preprocess import preprocess_pair

    return preprocess_pair(images, settings)


@hookimpl
def postprocess(
    tensors: Mapping[str, np.ndarray], geometry: tuple[ImageGeometry, ImageGeometry], settings: Settings
) -> Matches:
    """Matches above the threshold, in the order of image 0's keypoints."""
    from matchrt_lightglue.postprocess import postprocess_pair

    return postprocess_pair(tensors, geometry, settings)
