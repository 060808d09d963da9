"""EfficientLoFTR from images to keypoints, and the form of it that is exported."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matchrt_eloftr.networks.backbone import Backbone, RepVGGBlock, fuse_block
from matchrt_eloftr.networks.coarse import Cells, CoarseMatcher, cells_of, constant_inside
from matchrt_eloftr.networks.config import COARSE_STRIDE, TOKEN_STRIDE, Architecture, GraphSettings, Size
from matchrt_eloftr.networks.fine import FineMatcher
from matchrt_eloftr.networks.indexing import halves, take
from matchrt_eloftr.networks.packed import PackedTransformer
from matchrt_eloftr.networks.pyramid import FinePyramid, folded_pyramid
from matchrt_eloftr.networks.transformer import FeatureTransformer

INPUTS = ("image0", "image1", "valid0", "valid1")
"""Names of the inputs; the last two only where the valid rectangles are inputs."""

OUTPUTS = ("keypoints0", "keypoints1", "scores", "cells", "count", "candidates")
"""Names of the outputs, in order."""

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class EfficientLoFTR(nn.Module):
    """The whole matcher in fixed shapes, or in a range of them (EfficientLoFTR, CVPR 2024; MatchAnything, arXiv 2501.07556).

    State dict: 447 tensors in training form, 147 with `deploy`, under upstream's names without a prefix.
    """

    def __init__(
        self, settings: GraphSettings, architecture: Architecture | None = None, *, deploy: bool = False
    ) -> None:
        super().__init__()
        architecture = architecture or Architecture()
        self.settings, self.architecture = settings, architecture
        self.backbone = Backbone(architecture, deploy=deploy)
        self.loftr_coarse: FeatureTransformer | PackedTransformer = FeatureTransformer(
            architecture, _largest_grid(settings), settings.position_scale
        )
        self.fine_preprocess = FinePyramid(architecture)
        self.coarse_matching = CoarseMatcher(settings)
        self.fine_matching = FineMatcher(settings, architecture)
        for number, (matched, full) in enumerate(
            ((settings.matched0, settings.coarse0), (settings.matched1, settings.coarse1))
        ):
            rows, columns = (torch.arange(count, dtype=torch.int32) for count in matched)
            cells = (rows[:, None] * full[1] + columns).flatten()
            for name, table in (
                ("inside", constant_inside(matched, settings.border)),
                ("row", rows),
                ("column", columns),
                ("cell", cells),
            ):
                self.register_buffer(f"{name}{number}", table, persistent=False)

    def forward(
        self, image0: Tensor, image1: Tensor, valid0: Tensor | None = None, valid1: Tensor | None = None
    ) -> Outputs:
        """Images (B, 1, H, W) float32 in [0, 1], padded at the bottom and right; valid (height, width) (B, 2) int32 in pixels.

        Returns keypoints0 and keypoints1 (B, K, 2) float32 (x, y) in pixels of the padded images, with upstream's constant
        offset of -3.5; scores (B, K) float32, 0 where a slot is empty; cells (B, K, 2) int32, the cell of image 0 and of
        image 1 counted along the padded image's rows; count (B,) int32, the number of slots in use (with `top_k` they come
        first, best score first); candidates (B,) int32, the number of pairs above the score floor before `top_k` and
        `per_row` truncated them.
        """
        coarse0, coarse1, middle, fine = self.features(image0, image1)
        coarse0, coarse1 = self.transform(coarse0, coarse1, valid0, valid1)
        matches = self.coarse_matching(
            self._matched(coarse0, self.settings.matched0),
            self._matched(coarse1, self.settings.matched1),
            self._cells(0, coarse0, valid0),
            self._cells(1, coarse1, valid1),
        )
        map0, map1 = self.pyramid(coarse0, coarse1, middle, fine)
        keypoints0, keypoints1 = self.fine_matching(map0, map1, matches.cell0, matches.cell1)
        cells = torch.stack((self._padded_cell(0, matches.cell0), self._padded_cell(1, matches.cell1)), dim=-1)
        count = (matches.score > self.settings.score_floor).to(torch.int32).sum(1, dtype=torch.int32)
        return keypoints0, keypoints1, matches.score, cells, count, matches.candidates

    def features(self, image0: Tensor, image1: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Coarse features of each image (B, d3, H/8, W/8), and the maps at 1/4 and at 1/2: one stacked tensor for equal
        sizes, else one for each image.
        """
        if self.settings.size0 == self.settings.size1:
            x1, x2, coarse = self.backbone(torch.cat((image0, image1)))
            coarse0, coarse1 = halves(coarse, image0.shape[0])
            return coarse0, coarse1, [x2], [x1]
        first, second = self.backbone(image0), self.backbone(image1)
        return first[2], second[2], [first[1], second[1]], [first[0], second[0]]

    def transform(
        self, coarse0: Tensor, coarse1: Tensor, valid0: Tensor | None = None, valid1: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attention between the valid parts; features (B, d3, h, w) of the padded size, zero outside the valid parts."""
        settings = self.settings
        if settings.valid != "input":
            sizes = settings.matched0, settings.matched1
            return self._transform_cropped(coarse0, coarse1, sizes)
        assert valid0 is not None
        assert valid1 is not None
        if isinstance(self.loftr_coarse, PackedTransformer):
            return self._transform_masked(self.loftr_coarse, coarse0, coarse1, valid0, valid1)
        pairs = []
        for b in range(coarse0.shape[0]):
            crop0, crop1 = ((int(v[b, 0]) // COARSE_STRIDE, int(v[b, 1]) // COARSE_STRIDE) for v in (valid0, valid1))
            pairs.append(self._transform_cropped(coarse0[b : b + 1], coarse1[b : b + 1], (crop0, crop1)))
        return torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])

    def pyramid(
        self, coarse0: Tensor, coarse1: Tensor, middle: list[Tensor], fine: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Fine maps (B, d1, H/2, W/2) of both images."""
        if len(middle) == 1:
            return halves(self.fine_preprocess(torch.cat((coarse0, coarse1)), middle[0], fine[0]), coarse0.shape[0])
        return (
            self.fine_preprocess(coarse0, middle[0], fine[0]),
            self.fine_preprocess(coarse1, middle[1], fine[1]),
        )

    def _transform_cropped(self, coarse0: Tensor, coarse1: Tensor, sizes: tuple[Size, Size]) -> tuple[Tensor, Tensor]:
        crops = [_crop(c, size) for c, size in zip((coarse0, coarse1), sizes, strict=True)]
        if isinstance(self.loftr_coarse, PackedTransformer):
            out = [x.permute(0, 3, 1, 2) for x in self.loftr_coarse(crops[0], crops[1])]
        else:
            out = list(self.loftr_coarse(crops[0], crops[1]))
        padded = [_pad(x, c) for x, c in zip(out, (coarse0, coarse1), strict=True)]
        return padded[0], padded[1]

    def _transform_masked(
        self, packed: PackedTransformer, coarse0: Tensor, coarse1: Tensor, valid0: Tensor, valid1: Tensor
    ) -> tuple[Tensor, Tensor]:
        tokens0, tokens1 = ((v.float() * (1.0 / TOKEN_STRIDE)).int() for v in (valid0, valid1))
        out0, out1 = packed(coarse0, coarse1, (tokens0, tokens1))
        shown0, shown1 = self._shown(0, coarse0, valid0), self._shown(1, coarse1, valid1)
        return (out0 * shown0).permute(0, 3, 1, 2), (out1 * shown1).permute(0, 3, 1, 2)

    def _shown(self, number: int, coarse: Tensor, valid: Tensor) -> Tensor:
        """(B, h, w, 1) float32: 1 in the valid cells of image `number`."""
        cells = self._cells(number, coarse, valid)
        assert cells.bias is not None
        return (cells.bias == 0).float().reshape(coarse.shape[0], *coarse.shape[2:], 1)

    def _padded_cell(self, number: int, cell: Tensor) -> Tensor:
        """Matched cells (B, K) as cells of the padded image, int32."""
        if self.settings.valid == "input":
            return cell.int()
        return take(self.get_buffer(f"cell{number}"), cell)

    def _matched(self, coarse: Tensor, size: Size) -> Tensor:
        whole = self.settings.valid == "input"
        return (coarse if whole else _crop(coarse, size)).flatten(2).transpose(1, 2)

    def _cells(self, number: int, coarse: Tensor, valid: Tensor | None) -> Cells:
        if self.settings.valid != "input" or valid is None:
            return Cells(self.get_buffer(f"inside{number}"))
        rows, columns = self.get_buffer(f"row{number}"), self.get_buffer(f"column{number}")
        height, width = coarse.shape[-2:]
        return cells_of(valid, rows[:height], columns[:width], self.settings.border)


def prepare_for_export(network: EfficientLoFTR) -> EfficientLoFTR:
    """A copy in eval mode that computes the same function with fused convolutions and packed attention; exact algebra."""
    fused = copy.deepcopy(network).eval().float()
    _fuse(fused.backbone)
    fused.fine_preprocess = folded_pyramid(fused.fine_preprocess)
    if isinstance(fused.loftr_coarse, FeatureTransformer):
        fused.loftr_coarse = packed_transformer(fused.loftr_coarse, network.settings)
    return fused.eval().requires_grad_(False)


def packed_transformer(transformer: FeatureTransformer, settings: GraphSettings) -> PackedTransformer:
    """The packed form of a network's attention for the sizes of `settings`."""
    return PackedTransformer(
        transformer,
        (settings.matched0, settings.matched1),
        settings.position_scale,
        masked=settings.valid == "input",
        dynamic=settings.smallest is not None,
    ).eval()


def fuse_backbone(network: EfficientLoFTR) -> EfficientLoFTR:
    """A copy in deploy form: each RepVGG block one convolution, 147 tensors in all."""
    fused = copy.deepcopy(network).eval()
    _fuse(fused.backbone)
    return fused


def _fuse(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, RepVGGBlock):
            setattr(module, name, fuse_block(child))
        else:
            _fuse(child)


def _largest_grid(settings: GraphSettings) -> Size:
    """Attention tokens (rows, columns) that no image of either size exceeds."""
    rows, columns = (max(sides) for sides in zip(settings.size0, settings.size1, strict=True))
    return rows // TOKEN_STRIDE, columns // TOKEN_STRIDE


def _crop(x: Tensor, size: Size) -> Tensor:
    return x if tuple(x.shape[-2:]) == tuple(size) else x[..., : size[0], : size[1]]


def _pad(x: Tensor, like: Tensor) -> Tensor:
    missing = like.shape[-1] - x.shape[-1], like.shape[-2] - x.shape[-2]
    return x if missing == (0, 0) else F.pad(x, (0, missing[0], 0, missing[1]))
