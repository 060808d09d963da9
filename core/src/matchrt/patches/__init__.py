"""Reversible replacements that make a network exportable, each with a claim of exactness that tests hold it to."""

from __future__ import annotations

from matchrt.patches.base import Patch, apply_patches, replaced_modules
from matchrt.patches.layer_norm import DecomposedLayerNorm, decomposed_layer_norm, layer_norm_patches

__all__ = [
    "DecomposedLayerNorm",
    "Patch",
    "apply_patches",
    "decomposed_layer_norm",
    "layer_norm_patches",
    "replaced_modules",
]
