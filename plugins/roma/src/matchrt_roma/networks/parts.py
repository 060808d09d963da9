"""The parts that are exported one by one and hand tensors over on the device.

    images ─ vit ─▶ f16 ─ gp ─▶ mean ─┐
    images ─ pyramid ─▶ f8 f4 f2 f1 ──┴─ coarse ─▶ flow, certainty ─ refine ─▶ ─ upsample (images_high) ─▶ warp, certainty

A part references modules of the one `RomaNetwork` that owns the parameters; constants (positions, Fourier basis, grids)
are computed when the part is made, so make parts after loading weights. `images` stacks the first images of all pairs,
then the second ones: N = 2 * pairs. All maps are float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from matchrt_roma.networks.anchors import classes_to_flow, embedding_to_flow
from matchrt_roma.networks.grids import pixel_centres, resize, swap_halves
from matchrt_roma.networks.network import RomaNetwork
from matchrt_roma.networks.refiner import RefineStage
from matchrt_roma.settings import RomaSettings

PART_ORDER = ("vit", "pyramid", "gp", "coarse", "refine", "upsample")


def _pair_up(stacked: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """(query, support) maps of every direction: both directions stacked, or the first images against the second."""
    if symmetric:
        return stacked, swap_halves(stacked)
    half = stacked.shape[0] // 2
    return stacked[:half], stacked[half:]


class Part(nn.Module):
    """A network with named tensors in and out; `inputs` and `outputs` are in the order of `forward`."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def named(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on tensors by name."""
        results = self(*(tensors[name] for name in self.inputs))
        return dict(zip(self.outputs, results if isinstance(results, tuple) else (results,), strict=True))


class Vit(Part):
    """DINOv2 and the projection of scale 16: `images` `(N, 3, H, W)` to `f16` `(N, C, H/14, W/14)`."""

    inputs = ("images",)
    outputs = ("f16",)
    first: Tensor
    position: Tensor

    def __init__(self, network: RomaNetwork, settings: RomaSettings) -> None:
        super().__init__()
        self.dinov2 = network.dinov2
        self.projection = network.projection(16)
        first, position = network.dinov2.token_bias(*settings.grid)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("position", position, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.projection(self.dinov2(images, self.first, self.position))
        return out


class Pyramid(Part):
    """VGG and the projections of `scales`: `images` `(N, 3, H, W)` to `f8` `(N, C8, H/8, W/8)`, ..., `f1`."""

    inputs = ("images",)

    def __init__(self, network: RomaNetwork, scales: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = scales
        self.outputs = tuple(f"f{scale}" for scale in scales)
        self.cnn = network.encoder.cnn
        self.projections = nn.ModuleList(network.projection(scale) for scale in scales)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        maps = self.cnn(images)
        return tuple(project(maps[scale]) for scale, project in zip(self.scales, self.projections, strict=True))


class Gp(Part):
    """The Gaussian process: `f16` `(N, C, g, g)` to `mean` `(D, G, g, g)`, D directions. Strict float32."""

    inputs = ("f16",)
    outputs = ("mean",)
    basis: Tensor
    identity: Tensor

    def __init__(self, network: RomaNetwork, settings: RomaSettings) -> None:
        super().__init__()
        self.symmetric = settings.symmetric
        self.process = network.process
        tokens = settings.grid[0] * settings.grid[1]
        self.register_buffer("basis", network.process.basis(*settings.grid), persistent=False)
        self.register_buffer("identity", torch.eye(min(settings.leaf, tokens)), persistent=False)

    def forward(self, f16: Tensor) -> Tensor:
        """See the class."""
        query, support = _pair_up(f16, self.symmetric)
        out: Tensor = self.process(query, support, self.basis, self.identity)
        return out


class GpReadout(Gp):
    """The Gaussian process read out on the anchor grid: `f16` to `warp` `(D, g, g, 2)` and `certainty` `(D, g, g)`."""

    outputs = ("warp", "certainty")
    anchors: Tensor
    embedding: Tensor

    def __init__(self, network: RomaNetwork, settings: RomaSettings) -> None:
        super().__init__(network, settings)
        anchors = network.config.anchors
        self.register_buffer("anchors", pixel_centres(anchors, anchors).reshape(-1, 2), persistent=False)
        self.register_buffer("embedding", network.process.basis(anchors, anchors), persistent=False)

    def forward(self, f16: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """See the class."""
        mean = super().forward(f16)
        batch, _, height, width = mean.shape
        flow, certainty = embedding_to_flow(mean.flatten(2).transpose(1, 2), self.anchors, self.embedding)
        return flow.clamp(-1.0, 1.0).reshape(batch, height, width, 2), certainty.reshape(batch, height, width)


class Coarse(Part):
    """Match decoder and refiners 16 and 8.

    `mean` `(D, G, g, g)`, `f16` `(N, C, g, g)`, `f8` `(N, C8, h, w)` to `flow8` `(D, 2, h, w)` in [-1, 1], `certainty8`
    `(D, 1, h, w)` and `certainty16` `(D, 1, g, g)`, both logits; with `final` to `warp` and `certainty` at stride 8.
    """

    inputs = ("mean", "f16", "f8")
    anchors: Tensor

    def __init__(self, network: RomaNetwork, settings: RomaSettings, *, final: bool) -> None:
        super().__init__()
        self.outputs = ("warp", "certainty") if final else ("flow8", "certainty8", "certainty16")
        self.symmetric, self.attenuate, self.final = settings.symmetric, settings.attenuate, final
        self.decoder = network.match_decoder
        self.stage16, self.stage8 = _coarse_stages(network, settings, (16, 8))
        anchors = network.config.anchors
        self.register_buffer("anchors", pixel_centres(anchors, anchors).reshape(-1, 2), persistent=False)

    def decode(self, mean: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Flow `(D, 2, g, g)` and certainty logits `(D, 1, g, g)` of the match decoder, before any refiner."""
        logits, certainty = self.decoder(mean, query)
        batch, _, height, width = mean.shape
        flow = classes_to_flow(logits, self.anchors).transpose(1, 2).reshape(batch, 2, height, width)
        return flow, certainty

    def forward(self, mean: Tensor, f16: Tensor, f8: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        query, support = _pair_up(f16, self.symmetric)
        flow, certainty16 = self.stage16(query, support, *self.decode(mean, query))
        flow8, certainty8 = self.stage8(*_pair_up(f8, self.symmetric), flow, certainty16)
        if self.final:
            return finish(flow8, certainty8, certainty16, attenuate=self.attenuate)
        return flow8, certainty8, certainty16


class Refine(Part):
    """Refiners 4, 2 and 1 of the coarse pass.

    `flow8`, `certainty8`, `f4`, `f2`, `f1` to `flow` `(D, 2, h, w)` and `certainty_low` `(D, 1, h, w)` (logits), resized to
    the upsampling pass's map at stride 8; without that pass also `certainty16` in, `warp` and `certainty` out.
    """

    def __init__(self, network: RomaNetwork, settings: RomaSettings) -> None:
        super().__init__()
        self.symmetric, self.attenuate = settings.symmetric, settings.attenuate
        self.target = settings.upsample_map_size(8) if settings.upsamples else None
        tail = ("certainty16",) if self.target is None else ()
        self.inputs = ("flow8", "certainty8", "f4", "f2", "f1", *tail)
        self.outputs = ("warp", "certainty") if self.target is None else ("flow", "certainty_low")
        self.stages = nn.ModuleList(_coarse_stages(network, settings, (4, 2, 1)))

    def forward(
        self, flow8: Tensor, certainty8: Tensor, f4: Tensor, f2: Tensor, f1: Tensor, certainty16: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        flow, certainty = flow8, certainty8
        for stage, stacked in zip(self.stages, (f4, f2, f1), strict=True):
            flow, certainty = stage(*_pair_up(stacked, self.symmetric), flow, certainty)
        if self.target is not None:
            return resize(flow, self.target), resize(certainty, self.target)
        assert certainty16 is not None
        return finish(flow, certainty, certainty16, attenuate=self.attenuate)


class Upsample(Part):
    """The upsampling pass: VGG at the high resolution, refiners 8, 4, 2 and 1, and the finished warp.

    `images_high` `(N, 3, H, W)`, `flow`, `certainty_low`, `certainty16` to `warp` `(D, H, W, 2)` and `certainty` `(D, H, W)`.
    """

    inputs = ("images_high", "flow", "certainty_low", "certainty16")
    outputs = ("warp", "certainty")

    def __init__(self, network: RomaNetwork, settings: RomaSettings) -> None:
        super().__init__()
        self.symmetric, self.attenuate = settings.symmetric, settings.attenuate
        self.pyramid = Pyramid(network, (8, 4, 2, 1))
        size, factor = settings.upsample_map_size(1), settings.upsample_factor
        self.stages = nn.ModuleList(
            RefineStage(network.refiner(scale), scale, settings.upsample_map_size(scale), size, factor)
            for scale in (8, 4, 2, 1)
        )

    def forward(
        self, images_high: Tensor, flow: Tensor, certainty_low: Tensor, certainty16: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See the class."""
        certainty = certainty_low
        for stage, stacked in zip(self.stages, self.pyramid(images_high), strict=True):
            flow, certainty = stage(*_pair_up(stacked, self.symmetric), flow, certainty)
        return finish(flow, certainty, certainty16, attenuate=self.attenuate)


def _coarse_stages(network: RomaNetwork, settings: RomaSettings, scales: tuple[int, ...]) -> list[RefineStage]:
    return [
        RefineStage(network.refiner(scale), scale, settings.map_size(scale), settings.size, settings.coarse_factor)
        for scale in scales
    ]


def finish(flow: Tensor, logits: Tensor, coarse_logits: Tensor, *, attenuate: bool) -> tuple[Tensor, Tensor]:
    """Warp `(D, H, W, 2)` clamped to [-1, 1] and certainty `(D, H, W)` in [0, 1].

    Where the coarse pass already doubted (negative logits after refiner 16), half of that doubt is taken off again as
    upstream does; a match outside the other image has certainty 0.
    """
    if attenuate:
        logits = logits - 0.5 * resize(coarse_logits, (flow.shape[-2], flow.shape[-1])).clamp(max=0.0)
    outside = (flow.abs() > 1.0).any(dim=1)
    certainty = logits[:, 0].sigmoid()
    return flow.clamp(-1.0, 1.0).permute(0, 2, 3, 1), torch.where(outside, torch.zeros_like(certainty), certainty)


class RomaParts(nn.Module):
    """A variant as its parts, in order; runs them one after the other as a reference."""

    def __init__(self, parts: Mapping[str, Part], settings: RomaSettings) -> None:
        super().__init__()
        self.settings = settings
        self.parts = nn.ModuleDict(dict(parts))

    @torch.no_grad()
    def run(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors by name after running every part: the given ones, those handed over, `warp` and `certainty`."""
        known = dict(tensors)
        for part in self.parts.values():
            assert isinstance(part, Part)
            known.update(part.named(known))
        return known

    def forward(self, images: Tensor, images_high: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images `(N, 3, H, W)` (and at the upsampling size) to warp `(D, H', W', 2)` and certainty `(D, H', W')`."""
        tensors = {"images": images} if images_high is None else {"images": images, "images_high": images_high}
        out = self.run(tensors)
        return out["warp"], out["certainty"]


def build_parts(network: RomaNetwork, settings: RomaSettings) -> RomaParts:
    """The parts of a variant, in the order they run; the network's weights must be loaded already."""
    parts: dict[str, Part] = {"vit": Vit(network, settings)}
    if settings.variant == "encoder-gp":
        parts["gp"] = GpReadout(network, settings)
    else:
        full = settings.variant == "full"
        parts["pyramid"] = Pyramid(network, (8, 4, 2, 1) if full else (8,))
        parts["gp"] = Gp(network, settings)
        parts["coarse"] = Coarse(network, settings, final=not full)
        if full:
            parts["refine"] = Refine(network, settings)
        if settings.upsamples:
            parts["upsample"] = Upsample(network, settings)
    return RomaParts(parts, settings).eval()
