"""A tiny RoMa of the published implementation (romatch), with the same weights as ours; test-only."""

from __future__ import annotations

from dataclasses import dataclass

import romatch.models.encoders as upstream_encoders
import romatch.models.matcher as upstream
import torch
from romatch.models.transformer import Block, MemEffAttention, TransformerDecoder
from romatch.models.transformer.dinov2 import DinoVisionTransformer
from torch import nn

from matchrt_roma.networks import Roma
from matchrt_roma.random_weights import fill
from matchrt_roma.settings import RomaConfig, RomaSettings

TINY = {
    "vit_dim": 64,
    "vit_depth": 2,
    "vit_heads": 2,
    "widths": (8, 12, 16, 20),
    "projected": {16: 32, 8: 24, 4: 16, 2: 8, 1: 5},
    "displacement": {16: 16, 8: 8, 4: 6, 2: 4, 1: 3},
    "radius": {16: 3, 8: 2, 4: 1, 2: 0, 1: 0},
    "hidden_blocks": 2,
    "gp_dim": 32,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "anchors": 16,
}


def tiny_config(grid: int = 8) -> RomaConfig:
    return RomaConfig(**TINY, vit_grid=grid)  # type: ignore[arg-type]


class _Vgg(nn.Module):
    """Upstream's VGG19 wrapper has fixed widths; this one has the same loop over narrower layers."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, count in zip(widths, (2, 2, 4, 4), strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.ModuleList(layers)
        self.amp, self.amp_dtype = False, torch.float32

    forward = upstream_encoders.VGG19.forward


class _Encoder(nn.Module):
    def __init__(self, config: RomaConfig) -> None:
        super().__init__()
        self.cnn = _Vgg(config.widths)
        vit = DinoVisionTransformer(
            img_size=14 * config.vit_grid,
            patch_size=14,
            embed_dim=config.vit_dim,
            depth=config.vit_depth,
            num_heads=config.vit_heads,
            init_values=1.0,
            block_chunks=0,
        ).eval()
        self.dinov2_vitl14 = [vit]

    def forward(self, x: torch.Tensor, upsample: bool = False) -> dict[int, torch.Tensor]:
        pyramid = self.cnn(x)
        if not upsample:
            tokens = self.dinov2_vitl14[0].forward_features(x)["x_norm_patchtokens"]
            pyramid[16] = tokens.permute(0, 2, 1).reshape(len(x), -1, x.shape[2] // 14, x.shape[3] // 14)
        return pyramid


def upstream_matcher(config: RomaConfig, size: int, upsample: int | None) -> upstream.RegressionMatcher:
    """romatch's own classes at `config`'s numbers, randomly initialised."""
    decoder = TransformerDecoder(
        nn.Sequential(
            *(
                Block(config.decoder_dim, config.decoder_heads, attn_class=MemEffAttention)
                for _ in range(config.decoder_depth)
            )
        ),
        config.decoder_dim,
        config.anchors**2 + 1,
        is_classifier=True,
        pos_enc=False,
    )
    refiners = nn.ModuleDict(
        {
            str(scale): upstream.ConvRefiner(
                config.refiner_channels(scale),
                config.refiner_channels(scale),
                3,
                dw=True,
                hidden_blocks=config.hidden_blocks,
                displacement_emb="linear",
                displacement_emb_dim=config.displacement[scale],
                local_corr_radius=config.radius[scale] or None,
                corr_in_other=True,
            )
            for scale in (16, 8, 4, 2, 1)
        }
    )
    gp = upstream.GP(
        upstream.CosKernel, T=config.kernel_temperature, gp_dim=config.gp_dim, no_cov=True, sigma_noise=config.noise
    )
    widths = {16: config.vit_dim, 8: config.widths[3], 4: config.widths[2], 2: config.widths[1], 1: config.widths[0]}
    proj = nn.ModuleDict(
        {
            str(scale): nn.Sequential(
                nn.Conv2d(widths[scale], config.projected[scale], 1), nn.BatchNorm2d(config.projected[scale])
            )
            for scale in (16, 8, 4, 2, 1)
        }
    )
    whole = upstream.Decoder(
        decoder, nn.ModuleDict({"16": gp}), proj, refiners, detach=True, scales=["16", "8", "4", "2", "1"]
    )
    return upstream.RegressionMatcher(
        _Encoder(config),
        whole,
        h=size,
        w=size,
        upsample_preds=upsample is not None,
        upsample_res=(upsample, upsample) if upsample else None,
        symmetric=True,
        attenuate_cert=True,
    ).eval()


@dataclass(frozen=True)
class Twins:
    """Our network and upstream's with the same weights."""

    ours: Roma
    theirs: upstream.RegressionMatcher

    @property
    def vit(self) -> DinoVisionTransformer:
        return self.theirs.encoder.dinov2_vitl14[0]


def make_twins(grid: int = 8, size: int = 112, upsample: int | None = 128, seed: int = 0, leaf: int = 40) -> Twins:
    """Upstream gets the random weights under its own names; ours loads them by name."""
    high = (upsample, upsample) if upsample else None
    settings = RomaSettings(recipe="upstream", size=(size, size), upsample_size=high, leaf=leaf)
    return twins_of(tiny_config(grid), settings, seed)


def twins_of(config: RomaConfig, settings: RomaSettings, seed: int = 0, peak: float = 20.0) -> Twins:
    """Both networks at any configuration; ours shares upstream's tensors instead of copying them."""
    high = settings.upsample_size
    theirs = upstream_matcher(config, settings.size[0], high[0] if high else None)
    fill(theirs, torch.Generator().manual_seed(seed), peak=peak, step=0.2, certainty=0.3)
    vit = theirs.encoder.dinov2_vitl14[0]
    fill(vit, torch.Generator().manual_seed(seed + 1), peak=20.0, step=0.2, certainty=0.3)
    with torch.device("meta"):
        ours = Roma(settings, config)
    state = dict(theirs.state_dict()) | {f"dinov2.{name}": tensor for name, tensor in vit.state_dict().items()}
    del state["dinov2.mask_token"]
    ours.load_state_dict(state, strict=True, assign=True)
    theirs.eval()
    vit.eval()
    return Twins(ours.eval(), theirs)


def images(count: int, size: int, seed: int = 3) -> torch.Tensor:
    """Smooth random images in [0, 1], `(count, 3, size, size)`."""
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
