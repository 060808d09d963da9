"""RoMa's network in PyTorch: `Roma` owns all parameters and makes the parts that are exported."""

from matchrt_roma.networks.parts import Part
from matchrt_roma.networks.roma import Roma, part_names

__all__ = ["Part", "Roma", "part_names"]
