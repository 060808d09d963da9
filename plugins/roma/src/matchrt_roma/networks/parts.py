"""The parts that are exported one by one and hand tensors over on the device.

    images ─ vit ─▶ f16 ─ gp ─▶ mean ─────────┐
    images ─ pyramid ─▶ f8 f4 f2 f1 ─ coarse ─┴─▶ flow, certainty ─ refine ─▶ flow, certainty
    images_high ─ upsample ─▶ warp, certainty

A part references modules of the one network that owns the parameters; constants (positions, Fourier basis, grids) are
computed when the part is made, so make parts after loading weights.

Every tensor is float32 and leads with the pair axis B. `B, 2` are the pair's two images, `B, D` its directions: 0 from
image 0 into image 1 and, when symmetric, 1 back. Coordinates are (x, y) in [-1, 1]; certainties are logits until the
last part.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from matchrt_roma.networks.anchors import classes_to_flow, embedding_to_flow
from matchrt_roma.networks.grids import merge, pixel_centres, query_and_support, resize, unmerge
from matchrt_roma.networks.network import RomaNetwork
from matchrt_roma.networks.refiner import RefineStage
from matchrt_roma.settings import RomaSettings


class Part(nn.Module):
    """A network with named tensors in and out; `inputs` and `outputs` are in the order of `forward`."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def named(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on tensors by name."""
        results = self(*(tensors[name] for name in self.inputs))
        return dict(zip(self.outputs, results if isinstance(results, tuple) else (results,), strict=True))


class Vit(Part):
    """DINOv2 and the projection of scale 16: `images` `(B, 2, 3, H, W)` to `f16` `(B, 2, C, H/14, W/14)`."""

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
        return unmerge(self.projection(self.dinov2(merge(images), self.first, self.position)), 2)


class Pyramid(Part):
    """VGG and the projections of `scales`: `images` `(B, 2, 3, H, W)` to `f8` `(B, 2, C8, H/8, W/8)`, ..., `f1`."""

    inputs = ("images",)

    def __init__(self, network: RomaNetwork, scales: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = scales
        self.outputs = tuple(f"f{scale}" for scale in scales)
        self.cnn = network.encoder.cnn
        self.projections = nn.ModuleList(network.projection(scale) for scale in scales)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        maps = self.cnn(merge(images))
        pairs = zip(self.scales, self.projections, strict=True)
        return tuple(unmerge(project(maps[scale]), 2) for scale, project in pairs)


class Gp(Part):
    """The Gaussian process: `f16` `(B, 2, C, g, g)` to `mean` `(B, D, G, g, g)`. Strict float32."""

    inputs = ("f16",)
    outputs: tuple[str, ...] = ("mean",)
    basis: Tensor
    identity: Tensor

    def __init__(self, network: RomaNetwork, settings: RomaSettings) -> None:
        super().__init__()
        self.symmetric = settings.symmetric
        self.process = network.process
        tokens = settings.grid[0] * settings.grid[1]
        self.register_buffer("basis", network.process.basis(*settings.grid), persistent=False)
        self.register_buffer("identity", torch.eye(min(settings.leaf, tokens)), persistent=False)

    def posterior(self, f16: Tensor) -> Tensor:
        """The mean of every direction, `(B*D, G, g, g)`."""
        query, support = query_and_support(f16, self.symmetric)
        out: Tensor = self.process(query, support, self.basis, self.identity)
        return out

    def forward(self, f16: Tensor) -> Tensor:
        """See the class."""
        return unmerge(self.posterior(f16), 1 + self.symmetric)


class GpReadout(Gp):
    """The Gaussian process, read out on anchors: `f16` to `warp` `(B, D, g, g, 2)` and `certainty` `(B, D, g, g)`."""

    outputs = ("warp", "certainty")
    anchors: Tensor
    anchor_basis: Tensor

    def __init__(self, network: RomaNetwork, settings: RomaSettings) -> None:
        super().__init__(network, settings)
        anchors = network.config.anchors
        self.register_buffer("anchors", pixel_centres(anchors, anchors).reshape(-1, 2), persistent=False)
        self.register_buffer("anchor_basis", network.process.basis(anchors, anchors), persistent=False)

    def forward(self, f16: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """See the class."""
        mean = self.posterior(f16)
        height, width = mean.shape[-2:]
        flow, certainty = embedding_to_flow(mean.flatten(2).transpose(1, 2), self.anchors, self.anchor_basis)
        directions = 1 + self.symmetric
        warp = flow.clamp(-1.0, 1.0).reshape(-1, directions, height, width, 2)
        return warp, certainty.reshape(-1, directions, height, width)


class Coarse(Part):
    """Match decoder and refiners 16 and 8.

    `mean` `(B, D, G, g, g)`, `f16` `(B, 2, C, g, g)`, `f8` `(B, 2, C8, h, w)` to `flow8` `(B, D, 2, h, w)`,
    `certainty8` `(B, D, 1, h, w)` and `certainty16` `(B, D, 1, g, g)`; with `final` to `warp` and `certainty` at
    stride 8.
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
        """Flow `(B*D, 2, g, g)` and certainty logits `(B*D, 1, g, g)` of the match decoder, before any refiner."""
        logits, certainty = self.decoder(mean, query)
        height, width = mean.shape[-2:]
        return classes_to_flow(logits, self.anchors).transpose(1, 2).reshape(-1, 2, height, width), certainty

    def forward(self, mean: Tensor, f16: Tensor, f8: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        query, support = query_and_support(f16, self.symmetric)
        flow, certainty16 = self.stage16(query, support, *self.decode(merge(mean), query))
        flow8, certainty8 = self.stage8(*query_and_support(f8, self.symmetric), flow, certainty16)
        results: tuple[Tensor, ...] = (flow8, certainty8, certainty16)
        if self.final:
            results = finish(*results, attenuate=self.attenuate)
        return tuple(unmerge(result, 1 + self.symmetric) for result in results)


class Refine(Part):
    """Refiners 4, 2 and 1 of the coarse pass.

    `flow8`, `certainty8`, `f4`, `f2`, `f1` to `flow` `(B, D, 2, h, w)` and `certainty_low` `(B, D, 1, h, w)`, resized
    to the upsampling pass's map at stride 8; with `final` (no such pass) also `certainty16` in, `warp` and `certainty`
    out.
    """

    def __init__(self, network: RomaNetwork, settings: RomaSettings, *, final: bool) -> None:
        super().__init__()
        self.symmetric, self.attenuate = settings.symmetric, settings.attenuate
        self.target = None if final else settings.upsample_map_size(8)
        self.inputs = ("flow8", "certainty8", "f4", "f2", "f1", *(("certainty16",) if final else ()))
        self.outputs = ("warp", "certainty") if final else ("flow", "certainty_low")
        self.stages = nn.ModuleList(_coarse_stages(network, settings, (4, 2, 1)))

    def forward(
        self, flow8: Tensor, certainty8: Tensor, f4: Tensor, f2: Tensor, f1: Tensor, certainty16: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """See the class."""
        flow, certainty = merge(flow8), merge(certainty8)
        for stage, maps in zip(self.stages, (f4, f2, f1), strict=True):
            flow, certainty = stage(*query_and_support(maps, self.symmetric), flow, certainty)
        results: tuple[Tensor, ...]
        if self.target is not None:
            results = resize(flow, self.target), resize(certainty, self.target)
        else:
            assert certainty16 is not None
            results = finish(flow, certainty, merge(certainty16), attenuate=self.attenuate)
        return tuple(unmerge(result, 1 + self.symmetric) for result in results)


class Upsample(Part):
    """The upsampling pass: VGG at the high resolution, refiners 8, 4, 2 and 1, and the finished warp.

    `images_high` `(B, 2, 3, H, W)`, `flow`, `certainty_low`, `certainty16` to `warp` `(B, D, H, W, 2)` and `certainty`
    `(B, D, H, W)`.
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
    ) -> tuple[Tensor, ...]:
        """See the class."""
        flow, certainty = merge(flow), merge(certainty_low)
        for stage, maps in zip(self.stages, self.pyramid(images_high), strict=True):
            flow, certainty = stage(*query_and_support(maps, self.symmetric), flow, certainty)
        results = finish(flow, certainty, merge(certainty16), attenuate=self.attenuate)
        return tuple(unmerge(result, 1 + self.symmetric) for result in results)


def _coarse_stages(network: RomaNetwork, settings: RomaSettings, scales: tuple[int, ...]) -> list[RefineStage]:
    return [
        RefineStage(network.refiner(scale), scale, settings.map_size(scale), settings.size, settings.coarse_factor)
        for scale in scales
    ]


def finish(flow: Tensor, logits: Tensor, coarse_logits: Tensor, *, attenuate: bool) -> tuple[Tensor, ...]:
    """Warp `(M, H, W, 2)` clamped to [-1, 1] and certainty `(M, H, W)` in [0, 1], from `(M, 2, H, W)` and logits.

    Where the coarse pass already doubted (negative logits after refiner 16), half of that doubt is given back, as
    upstream does; a match outside the other image has certainty 0.
    """
    if attenuate:
        logits = logits - 0.5 * resize(coarse_logits, (flow.shape[-2], flow.shape[-1])).clamp(max=0.0)
    distance = flow.abs()
    outside = torch.maximum(distance[:, :1], distance[:, 1:]).squeeze(1) > 1.0
    certainty = logits.squeeze(1).sigmoid()
    return flow.clamp(-1.0, 1.0).permute(0, 2, 3, 1), torch.where(outside, torch.zeros_like(certainty), certainty)
