"""The owner of all parameters: 603 keys of a RoMa checkpoint and 342 of DINOv2, each exactly once."""

from __future__ import annotations

from torch import nn

from matchrt_roma.networks.dinov2 import DinoV2
from matchrt_roma.networks.gp import GaussianProcess
from matchrt_roma.networks.refiner import Refiner
from matchrt_roma.networks.transformer import MatchDecoder
from matchrt_roma.networks.vgg import VggPyramid
from matchrt_roma.settings import SCALES, RomaConfig


class Encoder(nn.Module):
    """Holds `cnn`: the checkpoint's `encoder.` names. DINOv2 has its own namespace, `dinov2.`."""

    def __init__(self, config: RomaConfig) -> None:
        super().__init__()
        self.cnn = VggPyramid(config.widths)


class Decoder(nn.Module):
    """The checkpoint's `decoder.` names: match decoder, Gaussian process, projections and refiners."""

    def __init__(self, config: RomaConfig) -> None:
        super().__init__()
        self.embedding_decoder = MatchDecoder(
            config.decoder_dim, config.decoder_depth, config.decoder_heads, config.anchors
        )
        self.gps = nn.ModuleDict({"16": GaussianProcess(config.gp_dim, config.kernel_temperature, config.noise)})
        widths = {
            16: config.vit_dim,
            8: config.widths[3],
            4: config.widths[2],
            2: config.widths[1],
            1: config.widths[0],
        }
        self.proj = nn.ModuleDict(
            {
                str(scale): nn.Sequential(
                    nn.Conv2d(widths[scale], config.projected[scale], 1), nn.BatchNorm2d(config.projected[scale])
                )
                for scale in SCALES
            }
        )
        self.conv_refiner = nn.ModuleDict(
            {
                str(scale): Refiner(
                    config.refiner_channels(scale),
                    config.displacement[scale],
                    config.radius[scale],
                    config.hidden_blocks,
                )
                for scale in SCALES
            }
        )


class RomaNetwork(nn.Module):
    """All of RoMa's parameters, under `encoder.cnn.`, `decoder.` and `dinov2.`.

    It computes nothing itself: `build_parts` composes the stages from its modules, once its weights are loaded.
    """

    def __init__(self, config: RomaConfig | None = None) -> None:
        super().__init__()
        self.config = config if config is not None else RomaConfig()
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.dinov2 = DinoV2(self.config.vit_dim, self.config.vit_depth, self.config.vit_heads, self.config.vit_grid)
        self.eval()

    @property
    def match_decoder(self) -> MatchDecoder:
        """The transformer over (GP mean, feature) tokens."""
        return self.decoder.embedding_decoder

    @property
    def process(self) -> GaussianProcess:
        """The Gaussian process at scale 16."""
        module = self.decoder.gps["16"]
        assert isinstance(module, GaussianProcess)
        return module

    def projection(self, scale: int) -> nn.Module:
        """1x1 convolution and batch norm of one scale."""
        return self.decoder.proj[str(scale)]

    def refiner(self, scale: int) -> Refiner:
        """The refiner of one scale."""
        module = self.decoder.conv_refiner[str(scale)]
        assert isinstance(module, Refiner)
        return module
