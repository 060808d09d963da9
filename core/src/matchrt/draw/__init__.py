"""Pictures of matches, warps and heat maps."""

from __future__ import annotations

from matchrt.draw.dense import heat_map, warp_overlay
from matchrt.draw.matches import side_by_side

__all__ = ["heat_map", "side_by_side", "warp_overlay"]
