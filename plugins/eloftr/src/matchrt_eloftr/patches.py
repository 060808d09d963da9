"""Reversible replacements for export; each is exact algebra computed in float64 and rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from matchrt.patches import Patch, replaced_modules
from matchrt_eloftr.networks.backbone import RepVGGBlock, fuse_block
from matchrt_eloftr.networks.network import EfficientLoFTR, packed_transformer
from matchrt_eloftr.networks.pyramid import FinePyramid, folded_pyramid
from matchrt_eloftr.networks.transformer import FeatureTransformer


def fused_backbone() -> Patch:
    """Each training-form RepVGG block becomes one 3x3 convolution; deploy-form blocks are left alone."""

    def replace(module: nn.Module) -> nn.Module | None:
        return fuse_block(module) if isinstance(module, RepVGGBlock) and not module.deploy else None

    return Patch(
        name="fused-repvgg",
        reason="three branches and their normalisations a block cost memory traffic and a ninth more arithmetic",
        exact=True,
        tolerance=1e-3,
        apply=lambda network: replaced_modules(network, replace),
    )


def folded_normalisation() -> Patch:
    """The two batch normalisations of the feature pyramid become part of the convolutions before them."""
    return Patch(
        name="folded-pyramid",
        reason="an exporter may keep BatchNormalization as an operator of its own",
        exact=True,
        tolerance=1e-3,
        apply=lambda network: replaced_modules(
            network, lambda module: folded_pyramid(module) if isinstance(module, FinePyramid) else None
        ),
    )


def packed_attention() -> Patch:
    """The attention layers with combined matrices, constant rotary tables and constant upsampling.

    It needs the `EfficientLoFTR` inside the network for its sizes, and it is what makes valid rectangles as an input exportable.
    """

    @contextmanager
    def apply(network: nn.Module) -> Iterator[None]:
        owner = next(m for m in network.modules() if isinstance(m, EfficientLoFTR))

        def replace(module: nn.Module) -> nn.Module | None:
            return packed_transformer(module, owner.settings) if isinstance(module, FeatureTransformer) else None

        with replaced_modules(network, replace):
            yield

    return Patch(
        name="packed-attention",
        reason="cropping to a valid rectangle is a dynamic slice, and rotary pairs cost Slice and Concat chains",
        exact=True,
        tolerance=1e-3,
        apply=apply,
    )


def export_patches() -> tuple[Patch, ...]:
    """All of them, in the order they are applied."""
    return fused_backbone(), folded_normalisation(), packed_attention()
