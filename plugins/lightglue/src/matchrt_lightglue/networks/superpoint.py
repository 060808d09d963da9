"""SuperPoint (DeTone, Malisiewicz, Rabinovich, CVPR Workshops 2018, arXiv 1712.07629), written from its layer table.

The selection of keypoints follows what the published LightGlue was trained and measured with (cvg/LightGlue,
`superpoint.py`): softmax over 65 channels, non-maximum suppression with two refinement rounds, a suppressed border,
a strict threshold. What differs is the form: a fixed number K of keypoints with a count of the valid ones, so that the
network exports without data-dependent shapes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matchrt.errors import UsageError
from matchrt_lightglue.networks.selection import CELL, best_pixels, local_maxima

TENSORRT_TOPK_LIMIT = 3840
"""Largest K of TensorRT's TopK layer (8.6 to 11.1); above it the graph parses and the engine build fails."""


class DenseFeatures(NamedTuple):
    """What `SuperPoint.forward_dense` computes, h = H // 8 and w = W // 8 cells."""

    scores: Tensor
    """(B, 8h, 8w) probability of an interest point, float32, before suppression."""
    descriptors: Tensor
    """(B, D, h, w) of unit length along D."""
    logits: Tensor
    """(B, 65, h, w) detector logits; channel 64 is "no point in this cell"."""


class Keypoints(NamedTuple):
    """K keypoints per image, best first; entries from `counts` on are filler (zeros)."""

    keypoints: Tensor
    """(B, K, 2) float32, (x, y) in pixels of the original image."""
    scores: Tensor
    """(B, K) float32, descending; 0 for filler."""
    descriptors: Tensor
    """(B, K, D) of unit length; zeros for filler."""
    counts: Tensor
    """(B,) int32, how many entries are keypoints."""


class SuperPoint(nn.Module):
    """Detector and descriptor on a shared VGG-like encoder of stride 8; parameter names as published (conv1a … convDb).

    `channels`: output channels of the four encoder stages. `head_dim`: width of both heads' 3x3 convolution.
    `descriptor_dim`: D. `max_keypoints`: K, at least 1 and at most 3840. `detection_threshold`: a keypoint's score must
    exceed it. `nms_radius`: radius r of the (2r+1)² suppression window. `border`: suppressed pixels on every side.
    `mask_padding`: zero every feature map outside the valid area, which makes a padded image give what the unpadded
    one gives; without it only the detections are masked, and features within 50 pixels of the padding feel it.

    Raises `UsageError` when a setting is out of range.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, int, int, int] = (64, 64, 128, 128),
        head_dim: int = 256,
        descriptor_dim: int = 256,
        max_keypoints: int = 1024,
        detection_threshold: float = 0.0005,
        nms_radius: int = 4,
        border: int = 4,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        _check_settings(max_keypoints, detection_threshold, nms_radius, border)
        self.max_keypoints = max_keypoints
        self.detection_threshold = detection_threshold
        self.nms_radius = nms_radius
        self.border = border
        self.mask_padding = mask_padding
        self.descriptor_dim = descriptor_dim

        c1, c2, c3, c4 = channels
        self.conv1a, self.conv1b = FirstConv(c1), _conv3(c1, c1)
        self.conv2a, self.conv2b = _conv3(c1, c2), _conv3(c2, c2)
        self.conv3a, self.conv3b = _conv3(c2, c3), _conv3(c3, c3)
        self.conv4a, self.conv4b = _conv3(c3, c4), _conv3(c4, c4)
        self.convPa, self.convPb = _conv3(c4, head_dim), nn.Conv2d(head_dim, CELL * CELL + 1, 1)
        self.convDa, self.convDb = _conv3(c4, head_dim), nn.Conv2d(head_dim, descriptor_dim, 1)

    def forward_dense(self, image: Tensor, valid_size: Tensor | None = None) -> DenseFeatures:
        """Score map, descriptor map and detector logits of `image` (B, 1, H, W), float32 in [0, 1], H and W at least 8.

        `valid_size` (B, 2) int32, (height, width): the content of an image padded at the bottom and right, used when
        `mask_padding` is on; None means the whole image.
        """
        masks = _Padding(valid_size if self.mask_padding else None)
        x = self.conv1a(image, masks.of(image, 1))
        x = masks(F.max_pool2d(F.relu(self.conv1b(x)), 2), 2)
        x = masks(F.relu(self.conv2a(x)), 2)
        x = masks(F.max_pool2d(F.relu(self.conv2b(x)), 2), 4)
        x = masks(F.relu(self.conv3a(x)), 4)
        x = masks(F.max_pool2d(F.relu(self.conv3b(x)), 2), 8)
        x = masks(F.relu(self.conv4a(x)), 8)
        x = masks(F.relu(self.conv4b(x)), 8)

        logits = self.convPb(F.relu(self.convPa(x)))
        descriptors = F.normalize(self.convDb(F.relu(self.convDa(x))), dim=1)
        # The softmax runs over all 65 channels; dropping the 65th first would make every cell sum to one.
        cells = logits.permute(0, 2, 3, 1).softmax(-1)[..., : CELL * CELL]
        batch, rows, columns, _ = cells.shape
        scores = cells.reshape(batch, rows, columns, CELL, CELL).permute(0, 1, 3, 2, 4)
        return DenseFeatures(scores.reshape(batch, rows * CELL, columns * CELL), descriptors, logits)

    def forward(self, image: Tensor, scale: Tensor, valid_size: Tensor) -> Keypoints:
        """Select and describe K keypoints per image.

        `image`: (B, 1, H, W) float32 in [0, 1], H and W at least 8 (what exceeds a multiple of 8 is seen but gives no
        keypoints). `scale`: (B, 2) float32, (y, x), network pixels per pixel of the original image. `valid_size`:
        (B, 2) int32, (height, width) of the content, which lies at the top left.
        """
        dense = self.forward_dense(image, valid_size)
        size = valid_size - valid_size % CELL  # (B, 2), whole cells only
        scores, index = self._select(dense.scores, size)
        valid = scores > 0
        # Indices stay integers: a detour through float16 cannot hold them.
        width = dense.scores.shape[2]
        index = torch.where(valid, index, torch.zeros_like(index))
        row = index // width
        position = torch.stack((index - row * width, row), dim=-1).to(torch.float32)

        mask = valid.to(torch.float32).unsqueeze(-1)
        descriptors = self._describe(dense.descriptors, position, size)
        scale_y, scale_x = scale.unbind(1)
        original = (position + 0.5) / torch.stack((scale_x, scale_y), dim=-1).unsqueeze(1) - 0.5
        return Keypoints(original * mask, scores, descriptors * mask, valid.to(torch.int32).sum(1, dtype=torch.int32))

    def _select(self, scores: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Best K of the suppressed map: scores (B, K) with 0 for none, indices (B, K) int32 into the flat map."""
        batch, height, width = scores.shape
        rows = torch.arange(height, dtype=torch.int32, device=scores.device).reshape(1, height, 1)
        columns = torch.arange(width, dtype=torch.int32, device=scores.device).reshape(1, 1, width)
        valid_rows, valid_columns = (s.reshape(batch, 1, 1) for s in size.to(torch.int32).unbind(1))
        inside = (rows < valid_rows) & (columns < valid_columns)
        maxima = local_maxima(torch.where(inside, scores, torch.zeros_like(scores)), inside, self.nms_radius)
        rows_kept = (rows >= self.border) & (rows < valid_rows - self.border)
        columns_kept = (columns >= self.border) & (columns < valid_columns - self.border)
        keep = maxima & rows_kept & columns_kept & (scores > self.detection_threshold)
        survivors = torch.where(keep, scores, torch.zeros_like(scores))
        return best_pixels(survivors, self.max_keypoints, self.nms_radius)

    def _describe(self, descriptors: Tensor, position: Tensor, size: Tensor) -> Tensor:
        """Bilinear descriptors (B, K, D) at `position` (B, K, 2), (x, y) network pixels; unit length.

        As published, position p of a map w cells wide reads cell (p - 3.5) / (8w - 4.5) · (w - 1), w being the width
        of the unpadded map; the padded map only changes the last division.
        """
        rows, columns = descriptors.shape[2:]
        height, width = size.to(torch.float32).unbind(1)
        extent = torch.stack((width, height), dim=-1).unsqueeze(1)  # (B, 1, 2) valid pixels
        last = torch.stack(
            ((width / CELL - 1) / max(columns - 1, 1), (height / CELL - 1) / max(rows - 1, 1)), dim=-1
        ).unsqueeze(1)
        grid = (position - (CELL - 1) / 2) / (extent - (CELL / 2 + 0.5)) * last * 2 - 1
        sampled = F.grid_sample(
            descriptors, grid.unsqueeze(1), mode="bilinear", padding_mode="zeros", align_corners=True
        )
        return F.normalize(sampled.squeeze(2), dim=1).transpose(1, 2)


class FirstConv(nn.Conv2d):
    """conv1a with its ReLU, zero outside the valid area. A class of its own, for the form that is exported (`patches.first_layer`)."""

    def __init__(self, outputs: int) -> None:
        super().__init__(1, outputs, kernel_size=3, padding=1)

    def forward(self, image: Tensor, inside: Tensor | None = None) -> Tensor:
        """`image` (B, 1, H, W) and `inside` (B, 1, H, W), 1 in the valid area and 0 elsewhere, to features (B, C, H, W)."""
        if inside is None:
            return F.relu(super().forward(image))
        return F.relu(super().forward(image * inside)) * inside


class _Padding:
    """Zeroes feature maps outside the valid area; one mask per stride."""

    def __init__(self, valid_size: Tensor | None) -> None:
        self.valid_size = valid_size
        self.masks: dict[int, Tensor] = {}

    def __call__(self, features: Tensor, stride: int) -> Tensor:
        mask = self.of(features, stride)
        return features if mask is None else features * mask

    def of(self, features: Tensor, stride: int) -> Tensor | None:
        """The mask of maps at `stride`, (B, 1, h, w), or None where nothing is masked."""
        if self.valid_size is None:
            return None
        if stride not in self.masks:
            self.masks[stride] = self._mask(features, stride)
        return self.masks[stride]

    def _mask(self, features: Tensor, stride: int) -> Tensor:
        """(B, 1, h, w): 1 where a whole stride x stride block lies inside, which is what floor pooling keeps."""
        assert self.valid_size is not None
        height, width = self.valid_size.to(torch.int32).unbind(1)
        ends = [(torch.arange(n, dtype=torch.int32, device=features.device) + 1) * stride for n in features.shape[2:]]
        inside_rows = ends[0].reshape(1, 1, -1, 1) <= height.reshape(-1, 1, 1, 1)
        inside_columns = ends[1].reshape(1, 1, 1, -1) <= width.reshape(-1, 1, 1, 1)
        return (inside_rows & inside_columns).to(features.dtype)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


def _check_settings(max_keypoints: int, threshold: float, nms_radius: int, border: int) -> None:
    if max_keypoints > TENSORRT_TOPK_LIMIT:
        raise UsageError(
            f"max_keypoints is {max_keypoints}, above {TENSORRT_TOPK_LIMIT}: TensorRT's TopK layer refuses a larger K "
            "when the engine is built",
            hint=f"choose at most {TENSORRT_TOPK_LIMIT} keypoints, or match overlapping tiles of the image",
        )
    if max_keypoints < 1:
        raise UsageError(f"max_keypoints is {max_keypoints}: at least 1 is needed")
    if threshold < 0:
        raise UsageError(f"detection_threshold is {threshold}: a score lies between 0 and 1")
    if nms_radius < 0 or border < 0:
        raise UsageError(f"nms_radius {nms_radius} and border {border} must not be negative")
