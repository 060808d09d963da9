"""Entry module of the plugin: EfficientLoFTR and MatchAnything-ELoFTR through matchrt's hooks."""

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
from matchrt_eloftr.spec import ELOFTR, MATCHANYTHING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from matchrt.geometry.transform import ImageGeometry
    from matchrt.images.image import Image
    from matchrt.matches import Matches
    from matchrt.patches import Patch
    from matchrt.weights.rules import Rule
    from matchrt_eloftr.networks import EfficientLoFTR

MATCHRT_API_VERSION = 1


@hookimpl
def register_matchers() -> Sequence[MatcherSpec]:
    """One network, two matchers with rules of their own."""
    return [ELOFTR, MATCHANYTHING]


@hookimpl
def weight_rules() -> Sequence[Rule]:
    """From upstream's, MatchAnything's and transformers' namings to upstream's names without a prefix."""
    from matchrt_eloftr.weights import rules

    return rules()


@hookimpl
def settings_from_weights(names: Sequence[str]) -> Mapping[str, object]:
    """Whether the file is re-parameterised; refuses files of networks that are known to be others."""
    from matchrt_eloftr.weights import is_deploy, refuse_strangers

    refuse_strangers(names)
    return {"form": "deploy"} if is_deploy(names) else {}


@hookimpl
def build_network(matcher: MatcherSpec, variant: Variant, settings: Settings) -> torch.nn.Module:
    """The whole network; the export takes it as it is."""
    from matchrt_eloftr.build import build

    return build(matcher, variant, settings)


@hookimpl
def random_weights(network: EfficientLoFTR) -> bool:
    """Weights and statistics that tell cells apart."""
    from matchrt_eloftr.random_weights import fill

    fill(network)
    return True


@hookimpl
def onnx_patches(target: Target) -> Sequence[Patch]:
    """Fused convolutions and packed attention; LayerNorm in explicit float32 where the opset has no operator for it."""
    from matchrt.patches import decomposed_layer_norm
    from matchrt_eloftr.patches import export_patches

    return [*export_patches(), *([decomposed_layer_norm()] if target.opset < 17 else [])]


@hookimpl
def example_inputs(settings: Settings) -> Mapping[str, ExampleInputs]:
    """Seeded inputs of the fixed size, for a dynamic number of pairs."""
    from matchrt_eloftr.build import example

    return {"network": example(settings)}


@hookimpl
def precision_rules(target: Target) -> Sequence[PrecisionRule]:
    """Coarse and fine matching stay in float32, and for TensorRT 8 the backbone."""
    from matchrt_eloftr.precision import rules

    return rules(target)


@hookimpl
def engine_options(target: Target) -> Mapping[str, bool]:
    """TensorFloat-32 for the products that half engines keep in float32."""
    from matchrt_eloftr.precision import engine_options as options

    return options(target)


@hookimpl
def parity() -> Parity:
    """Matches are a list in the order of their scores; a pair of cells names one, and ties may flip one in 200.

    Fused convolutions change activations of scale 50 by some 1e-4, which the similarity, divided by a temperature of 0.1, multiplies.
    """
    return Parity(
        tensors={
            "keypoints0": Tolerance(atol=1e-3, rtol=0, outliers=0.01, spare=2),
            "keypoints1": Tolerance(atol=0.02, rtol=0, outliers=0.01, spare=2),
            "scores": Tolerance(atol=1e-4, rtol=0.02, outliers=0.01),
            "cells": Tolerance(outliers=0.01, spare=2),
            "count": Tolerance(atol=0, outliers=1.0),
            "candidates": Tolerance(atol=0, outliers=1.0),
        },
        align={"network": Alignment(points="cells", count="count", radius=0.5)},
        coordinate_px=0.1,
        shared_matches=0.99,
    )


@hookimpl
def preprocess(
    images: tuple[Image, Image], settings: Settings
) -> tuple[Mapping[str, np.ndarray], tuple[ImageGeometry, ImageGeometry]]:
    """Grey, scaled and padded images, and their valid rectangles."""
    from matchrt_eloftr.pair import preprocess_pair

    return preprocess_pair(images, settings)


@hookimpl
def postprocess(
    tensors: Mapping[str, np.ndarray], geometry: tuple[ImageGeometry, ImageGeometry], settings: Settings
) -> Matches:
    """Matches above the threshold, ordered by their cells as upstream orders them."""
    from matchrt_eloftr.pair import postprocess_pair

    return postprocess_pair(tensors, geometry, settings)
