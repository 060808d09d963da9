"""Sizes of the networks, one entry per variant. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from matchrt.errors import UsageError


@dataclass(frozen=True)
class Variant:
    """Layer sizes of one SuperPoint + LightGlue pair; field names are those of the networks' arguments."""

    channels: tuple[int, int, int, int]
    """Output channels of the extractor's four stages."""
    head_dim: int
    """Width of the extractor's two heads."""
    descriptor_dim: int
    """Length of a descriptor, and the matcher's input."""
    dim: int
    """Width of the matcher."""
    heads: int
    """Attention heads of the matcher."""
    n_layers: int
    """Self- and cross-attention layers of the matcher."""


VARIANTS = {
    "full": Variant((64, 64, 128, 128), head_dim=256, descriptor_dim=256, dim=256, heads=4, n_layers=9),
    "mini": Variant((32, 64, 96, 128), head_dim=192, descriptor_dim=128, dim=128, heads=4, n_layers=5),
}
"""`full`: the published sizes. `mini`: the same layers, smaller, with weights of our own (MODEL_CARD.md)."""


def find_variant(name: str) -> Variant:
    """The variant called `name`; raises `UsageError` with the known names."""
    if name not in VARIANTS:
        raise UsageError(f"superpoint-lightglue has no variant {name!r}; it has {', '.join(VARIANTS)}")
    return VARIANTS[name]
