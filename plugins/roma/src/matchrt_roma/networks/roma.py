"""RoMa as core sees it: one owner of the weights, whose exported parts are attributes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from matchrt_roma.networks.network import RomaNetwork
from matchrt_roma.networks.parts import Coarse, Gp, GpReadout, Part, Pyramid, Refine, Upsample, Vit
from matchrt_roma.settings import RomaConfig, RomaSettings

PARTS = {
    "encoder-gp": ("vit", "gp_readout"),
    "coarse": ("vit", "pyramid8", "gp", "coarse_final"),
    "full": ("vit", "pyramid", "gp", "coarse", "refine", "upsample"),
    "full without upsampling": ("vit", "pyramid", "gp", "coarse", "refine_final"),
}


def part_names(settings: RomaSettings) -> tuple[str, ...]:
    """The parts that a bundle consists of, in the order they run."""
    variant = settings.variant
    return PARTS["full without upsampling" if variant == "full" and not settings.upsamples else variant]


class Roma(RomaNetwork):
    """`RomaNetwork` with settings; each property makes one part from the weights as they are now.

    A part's parameters are the network's own (nothing is registered twice), its constants are computed when it is made.
    """

    def __init__(self, settings: RomaSettings | None = None, config: RomaConfig | None = None) -> None:
        super().__init__(config)
        self.settings = settings if settings is not None else RomaSettings()

    @property
    def vit(self) -> Vit:
        """DINOv2 and projection 16."""
        return Vit(self, self.settings).eval()

    @property
    def pyramid(self) -> Pyramid:
        """VGG and projections 8, 4, 2, 1."""
        return Pyramid(self, (8, 4, 2, 1)).eval()

    @property
    def pyramid8(self) -> Pyramid:
        """VGG and projection 8."""
        return Pyramid(self, (8,)).eval()

    @property
    def gp(self) -> Gp:
        """The Gaussian process' mean."""
        return Gp(self, self.settings).eval()

    @property
    def gp_readout(self) -> GpReadout:
        """The Gaussian process, read out without the learned decoder."""
        return GpReadout(self, self.settings).eval()

    @property
    def coarse(self) -> Coarse:
        """Match decoder and refiners 16 and 8."""
        return Coarse(self, self.settings, final=False).eval()

    @property
    def coarse_final(self) -> Coarse:
        """The same, finished to warp and certainty at stride 8."""
        return Coarse(self, self.settings, final=True).eval()

    @property
    def refine(self) -> Refine:
        """Refiners 4, 2, 1, for the upsampling pass to go on from."""
        return Refine(self, self.settings, final=False).eval()

    @property
    def refine_final(self) -> Refine:
        """Refiners 4, 2, 1, finished to warp and certainty."""
        return Refine(self, self.settings, final=True).eval()

    @property
    def upsample(self) -> Upsample:
        """The upsampling pass."""
        return Upsample(self, self.settings).eval()

    def part(self, name: str) -> Part:
        """The part called `name` (see `part_names`)."""
        part = getattr(self, name)
        assert isinstance(part, Part)
        return part

    @torch.no_grad()
    def run(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors by name after running every part in order: given, handed over, `warp` and `certainty`."""
        known = dict(tensors)
        for name in part_names(self.settings):
            known.update(self.part(name).named(known))
        return known

    def forward(self, images: Tensor, images_high: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images `(B, 2, 3, H, W)` (and larger) to `warp` `(B, D, h, w, 2)`, `certainty` `(B, D, h, w)`."""
        out = self.run({"images": images} if images_high is None else {"images": images, "images_high": images_high})
        return out["warp"], out["certainty"]
