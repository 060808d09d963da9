"""RoMa's network in PyTorch: one owner of all parameters (`RomaNetwork`) and the parts that are exported."""

from matchrt_roma.networks.network import RomaNetwork
from matchrt_roma.networks.parts import PART_ORDER, RomaParts, build_parts

__all__ = ["PART_ORDER", "RomaNetwork", "RomaParts", "build_parts"]
