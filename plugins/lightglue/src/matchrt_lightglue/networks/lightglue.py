"""LightGlue (Lindenberger, Sarlin, Pollefeys, ICCV 2023, arXiv 2306.13643) with fixed depth and fixed-size outputs.

Parameter names are those of cvg/LightGlue's module, so a published state loads strictly. Early exit and point pruning
are left out: every layer runs and every point stays, which is what the published code computes with both turned off.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matchrt.errors import UsageError

KEY_BIAS = -3.0e4
"""Added to the attention logits of padded points: far below any logit, and still finite in float16."""

MASKED = -1.0e9
"""Similarity of padded points in the assignment (float32): finite, so that an empty image gives no NaN."""


class Matching(NamedTuple):
    """Matches of image 0's keypoints, one entry per keypoint."""

    matches0: Tensor
    """(B, K0) int32: index into image 1's keypoints, -1 where no mutual best exists."""
    scores0: Tensor
    """(B, K0) float32 in [0, 1]: assignment probability of the mutual best; 0 where there is none."""


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


class Points(NamedTuple):
    """Tokens of one image (or of both, stacked on the batch)."""

    x: Tensor
    """(B, N, dim) token features."""
    cos: Tensor
    """(B, N, head_dim / 2) cosine of the rotation angles."""
    sin: Tensor
    """(B, N, head_dim / 2) sine of the rotation angles."""
    bias: Tensor
    """(B, 1, 1, N) added to attention logits: 0 for keypoints, `KEY_BIAS` for filler."""


class State(NamedTuple):
    """Both images' tokens: stacked on the batch where they hold equally many points, else side by side."""

    groups: tuple[Points, ...]
    """One group of 2B (images 0, then images 1) or two groups of B."""
    partner: Tensor
    """(2B,) int64: where each stacked image's partner is; empty for two groups."""

    @staticmethod
    def join(points0: Points, points1: Points, *, stacked: bool) -> State:
        """The state of both images' tokens."""
        if not stacked:
            return State((points0, points1), torch.empty(0, dtype=torch.int64))
        batch = points0.x.shape[0]
        first = torch.arange(batch, device=points0.x.device)
        points = Points(*(torch.cat(pair) for pair in zip(points0, points1, strict=True)))
        return State((points,), torch.cat((first + batch, first)))

    def split(self) -> tuple[Tensor, Tensor]:
        """Features of image 0 and of image 1."""
        if len(self.groups) == 1:
            x0, x1 = self.groups[0].x.unflatten(0, (2, -1)).unbind(0)
            return x0, x1
        return self.groups[0].x, self.groups[1].x


class PositionalEncoding(nn.Module):
    """Learned Fourier features of a position, as the angles of a rotary encoding (LightGlue, equation 5)."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.Wr = nn.Linear(2, head_dim // 2, bias=False)
        nn.init.normal_(self.Wr.weight, mean=0, std=1.0)

    def forward(self, keypoints: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (B, N, head_dim / 2) for normalised keypoints (B, N, 2)."""
        angle = self.Wr(keypoints)
        return torch.cos(angle), torch.sin(angle)


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
            x = self.cross_attn.forward_stacked(groups[0], state.partner)
            return state._replace(groups=(groups[0]._replace(x=x),))
        x0, x1 = self.cross_attn(groups[0], groups[1])
        return state._replace(groups=(groups[0]._replace(x=x0), groups[1]._replace(x=x1)))


class SelfBlock(nn.Module):
    """Multi-head self-attention with rotary positions, and its feed-forward update.

    Rows of `Wqkv` are ordered (head, head dim, {query, key, value}); rotary pairs are neighbours (0, 1), (2, 3), …
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.Wqkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim)

    def forward(self, points: Points) -> Tensor:
        """Updated features (B, N, dim)."""
        batch, count, dim = points.x.shape
        q, k, v = self.Wqkv(points.x).reshape(batch, count, self.heads, dim // self.heads, 3).unbind(-1)
        cos, sin = points.cos.unsqueeze(2), points.sin.unsqueeze(2)
        q, k = rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
        q = q * (dim // self.heads) ** -0.5
        message = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), points.bias)
        return update(self.ffn, points.x, self.out_proj(message))


class CrossBlock(nn.Module):
    """Attention between two images with one projection for queries and keys, and its feed-forward update."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qk = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query (scaled), key and value, each (B, heads, N, head dim)."""
        qk, v = split_heads(self.to_qk(x), self.heads), split_heads(self.to_v(x), self.heads)
        return qk * (x.shape[-1] // self.heads) ** -0.5, qk, v

    def forward(self, points0: Points, points1: Points) -> tuple[Tensor, Tensor]:
        """Updated features (B, N0, dim) and (B, N1, dim)."""
        (q0, k0, v0), (q1, k1, v1) = self.project(points0.x), self.project(points1.x)
        message0 = self.to_out(attention(q0, k1, v1, points1.bias))
        message1 = self.to_out(attention(q1, k0, v0, points0.bias))
        return update(self.ffn, points0.x, message0), update(self.ffn, points1.x, message1)

    def forward_stacked(self, points: Points, partner: Tensor) -> Tensor:
        """Updated features (2B, N, dim) for images 0 stacked on images 1; `partner` (2B,) as in `State`."""
        q, k, v = self.project(points.x)
        k, v, bias = (t.index_select(0, partner) for t in (k, v, points.bias))
        return update(self.ffn, points.x, self.to_out(attention(q, k, v, bias)))


class MatchAssignment(nn.Module):
    """Similarity and matchability of all pairs of points (LightGlue, equations 6 to 8)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matchability = nn.Linear(dim, 1)
        self.final_proj = nn.Linear(dim, dim)

    def parts(self, x0: Tensor, x1: Tensor, count0: Tensor, count1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of both log-softmaxes (B, K0, K1) and the matchability logits (B, K0, 1) and (B, K1, 1), float32."""
        scale = x0.shape[-1] ** -0.25
        similarity = (self.final_proj(x0) * scale) @ (self.final_proj(x1) * scale).transpose(1, 2)
        valid = valid_points(count0, x0.shape[1]).unsqueeze(2) & valid_points(count1, x1.shape[1]).unsqueeze(1)
        similarity = similarity.to(torch.float32).masked_fill(~valid, MASKED)
        both = F.log_softmax(similarity, dim=2) + F.log_softmax(similarity, dim=1)
        return both, self.matchability(x0).to(torch.float32), self.matchability(x1).to(torch.float32)

    def inner(self, x0: Tensor, x1: Tensor, count0: Tensor, count1: Tensor) -> Tensor:
        """Log-assignment (B, K0, K1) without dustbins, all that matching needs."""
        both, z0, z1 = self.parts(x0, x1, count0, count1)
        return both + (log_sigmoid(z0) + log_sigmoid(z1).transpose(1, 2))

    def forward(self, x0: Tensor, x1: Tensor, count0: Tensor, count1: Tensor) -> Tensor:
        """Log-assignment (B, K0 + 1, K1 + 1) with dustbins, for training."""
        both, z0, z1 = self.parts(x0, x1, count0, count1)
        inner = both + log_sigmoid(z0) + log_sigmoid(z1).transpose(1, 2)
        corner = torch.zeros_like(z0[:, :1])
        right = torch.cat((log_sigmoid(-z0), corner), dim=1)
        bottom = log_sigmoid(-z1).transpose(1, 2)
        return torch.cat((torch.cat((inner, bottom), dim=1), right), dim=2)


class TokenConfidence(nn.Module):
    """How sure a point's prediction is final; trained, carried in the state, unused at fixed depth."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Sequential(nn.Linear(dim, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, N)."""
        logits: Tensor = self.token[0](x).squeeze(-1)
        return logits


def normalise_keypoints(keypoints: Tensor, size: Tensor) -> Tensor:
    """Centre and divide both axes by half the longer side: `keypoints` (B, N, 2) (x, y), `size` (B, 2) (height, width).

    One divisor for both axes keeps the image's proportions (`normalize_keypoints` of cvg/LightGlue).
    """
    height, width = size.to(torch.float32).unbind(1)
    centre = torch.stack((width, height), dim=-1) / 2
    half = torch.maximum(width, height) / 2
    return (keypoints - centre.unsqueeze(1)) / half.reshape(-1, 1, 1)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of the last axis of `x` (…, d) by angles given as `cos` and `sin` (…, d / 2)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention of `q` (B, heads, N, d), already scaled, over `k` and `v` (B, heads, M, d): (B, N, heads·d).

    Plain products in four dimensions with the scale applied before: the form that TensorRT fuses.
    """
    weights = (q @ k.transpose(2, 3) + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def update(ffn: nn.Sequential, x: Tensor, message: Tensor) -> Tensor:
    """Residual feed-forward update of `x` (B, N, dim) by `message` (B, N, dim)."""
    change: Tensor = ffn(torch.cat((x, message), dim=-1))
    return x + change


def feed_forward(dim: int) -> nn.Sequential:
    """The update's network on features and message, 2·dim wide."""
    return nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.LayerNorm(2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads·d) to (B, heads, N, d)."""
    batch, count, dim = x.shape
    return x.reshape(batch, count, heads, dim // heads).transpose(1, 2)


def valid_points(count: Tensor, total: int) -> Tensor:
    """(B, total) bool: the first `count` (B,) entries."""
    index = torch.arange(total, dtype=torch.int32, device=count.device)
    return index.unsqueeze(0) < count.to(torch.int32).unsqueeze(1)


def key_bias(count: Tensor, total: int, dtype: torch.dtype) -> Tensor:
    """(B, 1, 1, total): 0 for the first `count` keys, `KEY_BIAS` for the rest."""
    return ((~valid_points(count, total)).to(dtype) * KEY_BIAS)[:, None, None, :]


def log_sigmoid(x: Tensor) -> Tensor:
    """log σ(x) as -softplus(-x), written out: an exported LogSigmoid is Log(Sigmoid), which is -inf below about -18."""
    return torch.clamp(x, max=0) - torch.log1p(torch.exp(-x.abs()))


def mutual_matches(assignment: Tensor, count0: Tensor, count1: Tensor) -> Matching:
    """Mutual best pairs of a log-assignment (B, K0, K1); of equal values the first index wins."""
    best1 = assignment.argmax(2).to(torch.int32)
    best0 = assignment.argmax(1).to(torch.int32)
    index = torch.arange(assignment.shape[1], dtype=torch.int32, device=assignment.device).unsqueeze(0)
    mutual = best0.gather(1, best1.to(torch.int64)) == index
    # The valid points come first, so "is a keypoint" is a comparison with the count.
    mutual = mutual & (index < count0.unsqueeze(1)) & (best1 < count1.unsqueeze(1))
    scores = assignment.amax(2).exp()
    return Matching(
        torch.where(mutual, best1, torch.full_like(best1, -1)), torch.where(mutual, scores, torch.zeros_like(scores))
    )
