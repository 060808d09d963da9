"""LightGlue's heads: the assignment of points to points, who is matchable, and mutual best matches."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from matchrt_lightglue.networks.attention import valid_points

MASKED = -1.0e9
"""Similarity of padded points in the assignment (float32): finite, so that an empty image gives no NaN."""


class Matching(NamedTuple):
    """Matches of image 0's keypoints, one entry per keypoint."""

    matches0: Tensor
    """(B, K0) int32: index into image 1's keypoints, -1 where no mutual best exists."""
    scores0: Tensor
    """(B, K0) float32 in [0, 1]: assignment probability of the mutual best; 0 where there is none."""


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
