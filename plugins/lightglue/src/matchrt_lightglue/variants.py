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
    "superpoint": Variant((64, 64, 128, 128), head_dim=256, descriptor_dim=256, dim=256, heads=4, n_layers=9),
    "mini": Variant((16, 16, 32, 32), head_dim=64, descriptor_dim=64, dim=64, heads=2, n_layers=4),
}
VARIANTS["full"] = VARIANTS["superpoint"]
"""`superpoint`: the published sizes. `mini`: the same layers, small enough to train and test on a CPU."""


def find_variant(name: str) -> Variant:
    """The variant called `name`; raises `UsageError` with the known names."""
    if name not in VARIANTS:
        raise UsageError(f"superpoint-lightglue has no variant {name!r}; it has {', '.join(VARIANTS)}")
    return VARIANTS[name]
