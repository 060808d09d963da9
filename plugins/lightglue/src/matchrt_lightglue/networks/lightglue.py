"""LightGlue (Lindenberger, Sarlin, Pollefeys, ICCV 2023, arXiv 2306.13643) with fixed depth and fixed-size outputs.

Parameter names are those of cvg/LightGlue's module, so a published state loads strictly. Early exit and point pruning
are left out: every layer runs and every point stays, which is what the published code computes with both turned off.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from matchrt.errors import UsageError
from matchrt_lightglue.networks.assignment import MatchAssignment, Matching, TokenConfidence, mutual_matches
from matchrt_lightglue.networks.attention import CrossBlock, Points, PositionalEncoding, SelfBlock, key_bias


class TrainingOutput(NamedTuple):
    """Per-layer predictions for the losses."""

    log_assignments: list[Tensor]
    """n_layers tensors (B, K0 + 1, K1 + 1); the last row and column are "unmatched"."""
    confidences0: list[Tensor]
    """n_layers - 1 tensors (B, K0): logits of "this point's prediction is final"."""
    confidences1: list[Tensor]
    """n_layers - 1 tensors (B, K1)."""


class LightGlue(nn.Module):
    """Matcher of two sets of described keypoints.

    `input_dim`: D of the descriptors (an `input_proj` exists only where it differs from `dim`). `dim`: model width.
    `heads`: attention heads; `dim / heads` must be even. `n_layers`: self- and cross-attention layers.
    `add_scale_ori`: keypoints carry scale and orientation (SIFT); not supported. `equal_counts`: what an export assumes
    of K0 and K1 when their axes are dynamic; equal counts stack both images on the batch, which halves the operations.
    Eager runs and exports with static counts look at the counts themselves.

    Raises `UsageError` for settings that do not fit together.
    """

    confidence_thresholds: Tensor

    def __init__(
        self,
        *,
        input_dim: int = 256,
        dim: int = 256,
        heads: int = 4,
        n_layers: int = 9,
        add_scale_ori: bool = False,
        equal_counts: bool = True,
    ) -> None:
        super().__init__()
        if add_scale_ori:
            raise UsageError("LightGlue with scale and orientation (SIFT, DoGHardNet) is not supported")
        if dim % heads or (dim // heads) % 2:
            raise UsageError(f"dim {dim} must split into {heads} heads of an even width")
        self.input_dim, self.dim, self.heads, self.n_layers = input_dim, dim, heads, n_layers
        self.equal_counts = equal_counts
        if input_dim != dim:
            self.input_proj: nn.Module = nn.Linear(input_dim, dim)
        else:
            self.input_proj = nn.Identity()
        self.posenc = PositionalEncoding(dim // heads)
        self.transformers = nn.ModuleList(TransformerLayer(dim, heads) for _ in range(n_layers))
        self.log_assignment = nn.ModuleList(MatchAssignment(dim) for _ in range(n_layers))
        self.token_confidence = nn.ModuleList(TokenConfidence(dim) for _ in range(n_layers - 1))
        steps = torch.arange(n_layers, dtype=torch.float64)
        thresholds = (0.8 + 0.1 * torch.exp(-4.0 * steps / n_layers)).clamp(0, 1)
        self.register_buffer("confidence_thresholds", thresholds.to(torch.float32), persistent=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Some published states carry the early exit's thresholds and some do not; they follow from the depth.
        state_dict.pop(f"{prefix}confidence_thresholds", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(
        self,
        keypoints0: Tensor,
        descriptors0: Tensor,
        count0: Tensor,
        size0: Tensor,
        keypoints1: Tensor,
        descriptors1: Tensor,
        count1: Tensor,
        size1: Tensor,
    ) -> Matching:
        """Match B pairs.

        For each image: `keypoints` (B, K, 2) float32, (x, y) in pixels of the original image; `descriptors` (B, K, D);
        `count` (B,) int32, how many of the K are keypoints, the rest is ignored; `size` (B, 2) float32,
        (height, width) of the original image. K0 and K1 may differ. No threshold is applied: the caller does.
        """
        state = self._begin(keypoints0, descriptors0, count0, size0, keypoints1, descriptors1, count1, size1)
        for layer in self.transformers:
            state = layer(state)
        x0, x1 = state.split()
        return mutual_matches(self._last_assignment().inner(x0, x1, count0, count1), count0, count1)

    def forward_training(
        self,
        keypoints0: Tensor,
        descriptors0: Tensor,
        count0: Tensor,
        size0: Tensor,
        keypoints1: Tensor,
        descriptors1: Tensor,
        count1: Tensor,
        size1: Tensor,
    ) -> TrainingOutput:
        """Log-assignments with dustbins after every layer and the points' confidences; arguments as `forward`.

        Entries of padded points hold about -1e9 and must be left out of a loss.
        """
        state = self._begin(keypoints0, descriptors0, count0, size0, keypoints1, descriptors1, count1, size1)
        output = TrainingOutput([], [], [])
        for i, layer in enumerate(self.transformers):
            state = layer(state)
            x0, x1 = state.split()
            output.log_assignments.append(self.log_assignment[i](x0, x1, count0, count1))
            if i < self.n_layers - 1:
                # The confidence learns to predict; it must not steer what it predicts.
                output.confidences0.append(self.token_confidence[i](x0.detach()))
                output.confidences1.append(self.token_confidence[i](x1.detach()))
        return output

    def log_assignment_all(self, *inputs: Tensor) -> list[Tensor]:
        """Log-assignments (B, K0 + 1, K1 + 1) after every layer; arguments as `forward`."""
        return self.forward_training(*inputs).log_assignments

    def _last_assignment(self) -> MatchAssignment:
        head = self.log_assignment[self.n_layers - 1]
        assert isinstance(head, MatchAssignment)
        return head

    def _begin(
        self,
        keypoints0: Tensor,
        descriptors0: Tensor,
        count0: Tensor,
        size0: Tensor,
        keypoints1: Tensor,
        descriptors1: Tensor,
        count1: Tensor,
        size1: Tensor,
    ) -> State:
        points0 = self._points(keypoints0, descriptors0, count0, size0)
        points1 = self._points(keypoints1, descriptors1, count1, size1)
        n0, n1 = keypoints0.shape[1], keypoints1.shape[1]
        # While a graph is traced, sizes of dynamic axes are symbols, not ints.
        known = isinstance(n0, int) and isinstance(n1, int)
        return State.join(points0, points1, stacked=n0 == n1 if known else self.equal_counts)

    def _points(self, keypoints: Tensor, descriptors: Tensor, count: Tensor, size: Tensor) -> Points:
        cos, sin = self.posenc(normalise_keypoints(keypoints, size))
        x = self.input_proj(descriptors)
        return Points(x, cos, sin, key_bias(count, keypoints.shape[1], x.dtype))


class State(NamedTuple):
    """Both images' tokens: stacked on the batch where they hold equally many points, else side by side."""

    groups: tuple[Points, ...]
    """One group of 2B (images 0, then images 1) or two groups of B."""
    partner: Tensor
    """(2B,) int64: where each stacked image's partner is; empty for two groups."""
    partner_bias: Tensor
    """The partners' `bias`, joined once: a softmax of TensorRT's that gathered it took six times as long. Empty for two groups."""

    @staticmethod
    def join(points0: Points, points1: Points, *, stacked: bool) -> State:
        """The state of both images' tokens."""
        if not stacked:
            nobody = torch.empty(0, dtype=torch.int64, device=points0.x.device)
            return State((points0, points1), nobody, points0.x.new_empty(0))
        batch = points0.x.shape[0]
        first = torch.arange(batch, device=points0.x.device)
        points = Points(*(torch.cat(pair) for pair in zip(points0, points1, strict=True)))
        return State((points,), torch.cat((first + batch, first)), torch.cat((points1.bias, points0.bias)))

    def split(self) -> tuple[Tensor, Tensor]:
        """Features of image 0 and of image 1."""
        if len(self.groups) == 1:
            x0, x1 = self.groups[0].x.unflatten(0, (2, -1)).unbind(0)
            return x0, x1
        return self.groups[0].x, self.groups[1].x


class TransformerLayer(nn.Module):
    """Self-attention inside each image, then cross-attention between the two."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn = SelfBlock(dim, heads)
        self.cross_attn = CrossBlock(dim, heads)

    def forward(self, state: State) -> State:
        """One layer on the tokens of both images."""
        groups = tuple(p._replace(x=self.self_attn(p)) for p in state.groups)
        if len(groups) == 1:
            x = self.cross_attn.forward_stacked(groups[0], state.partner, state.partner_bias)
            return state._replace(groups=(groups[0]._replace(x=x),))
        x0, x1 = self.cross_attn(groups[0], groups[1])
        return state._replace(groups=(groups[0]._replace(x=x0), groups[1]._replace(x=x1)))


def normalise_keypoints(keypoints: Tensor, size: Tensor) -> Tensor:
    """Centre and divide both axes by half the longer side: `keypoints` (B, N, 2) (x, y), `size` (B, 2) (height, width).

    One divisor for both axes keeps the image's proportions (`normalize_keypoints` of cvg/LightGlue).
    """
    size = size.to(torch.float32)
    centre = size.index_select(1, torch.tensor((1, 0), device=size.device)) / 2
    return (keypoints - centre.unsqueeze(1)) / (size.amax(1) / 2).reshape(-1, 1, 1)
