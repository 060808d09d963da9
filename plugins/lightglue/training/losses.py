"""The three losses: detector, descriptors, matcher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from labels import IGNORED
from torch import Tensor
from views import invert, transform

from matchrt_lightglue.networks import TrainingOutput


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (B, N, M) of (B, N, 2) and (B, M, 2).

    Written out: `torch.cdist` either multiplies matrices, which loses a fraction of a pixel, or is twenty times slower.
    """
    x = a[..., 0].unsqueeze(2) - b[..., 0].unsqueeze(1)
    y = a[..., 1].unsqueeze(2) - b[..., 1].unsqueeze(1)
    return (x * x + y * y).sqrt()


def detector_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of 65 classes a cell (SuperPoint, equation 2): `logits` (B, 65, h, w), `targets` (B, h, w)."""
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED)


def descriptor_loss(
    descriptors0: Tensor, descriptors1: Tensor, points1: Tensor, valid: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the true partner, both ways, and the share of right nearest neighbours.

    `descriptors` (B, N, D) of the same N places in two views, `points1` (B, N, 2) their positions in view 1,
    `valid` (B, N). Other places within 5 pixels of the true one are neither right nor wrong.
    """
    similarity = (descriptors0.float() @ descriptors1.float().transpose(1, 2)) * temperature
    same = torch.eye(similarity.shape[1], dtype=torch.bool, device=similarity.device)
    close = (distances(points1, points1) < 5.0) & ~same
    both = valid.unsqueeze(1) & valid.unsqueeze(2)
    similarity = similarity.masked_fill(close | ~both, -1e4)
    rows, columns = similarity.log_softmax(2), similarity.log_softmax(1)
    true = (rows.diagonal(dim1=1, dim2=2) + columns.diagonal(dim1=1, dim2=2)) / 2
    count = valid.sum().clamp_min(1)
    right = (similarity.argmax(2) == torch.arange(similarity.shape[1], device=similarity.device)) & valid
    return -(true * valid).sum() / count, right.sum() / count


@torch.no_grad()
def true_matches(
    points0: Tensor, points1: Tensor, count0: Tensor, count1: Tensor, H0: Tensor, H1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the matcher should say: positives (B, K0, K1), unmatched (B, K0) and (B, K1), all bool.

    Positive: mutual nearest within 3 pixels in both views. Unmatched: nothing within 5 pixels. The rest is left open.
    """
    across = H1 @ invert(H0)
    there, back = transform(across, points0), transform(invert(across), points1)
    distance = torch.maximum(distances(there, points1), distances(points0, back))
    valid0 = torch.arange(points0.shape[1], device=count0.device) < count0.unsqueeze(1)
    valid1 = torch.arange(points1.shape[1], device=count1.device) < count1.unsqueeze(1)
    distance = distance.masked_fill(~(valid0.unsqueeze(2) & valid1.unsqueeze(1)), 1e6)
    nearest1, nearest0 = distance.min(2), distance.min(1)
    mutual = nearest0.indices.gather(1, nearest1.indices) == torch.arange(points0.shape[1], device=count0.device)
    hit = mutual & (nearest1.values < 3.0)
    positive = torch.zeros_like(distance, dtype=torch.bool).scatter(2, nearest1.indices.unsqueeze(2), hit.unsqueeze(2))
    return positive, valid0 & (nearest1.values > 5.0), valid1 & (nearest0.values > 5.0)


def matcher_loss(
    output: TrainingOutput, positive: Tensor, unmatched0: Tensor, unmatched1: Tensor
) -> tuple[Tensor, Tensor]:
    """LightGlue's assignment loss (equation 11), averaged over layers, plus its confidence loss (equation 12).

    Also returns the last layer's loss alone.
    """
    total, last = 0.0, 0.0
    matches = positive.sum((1, 2)).clamp_min(1)
    for scores in output.log_assignments:
        good = (scores[:, :-1, :-1] * positive).sum((1, 2)) / matches
        lone0 = (scores[:, :-1, -1] * unmatched0).sum(1) / unmatched0.sum(1).clamp_min(1)
        lone1 = (scores[:, -1, :-1] * unmatched1).sum(1) / unmatched1.sum(1).clamp_min(1)
        last = -(good + 0.5 * (lone0 + lone1)).mean()
        total = total + last / len(output.log_assignments)
    return total + 0.1 * _confidence_loss(output), last


def _confidence_loss(output: TrainingOutput) -> Tensor:
    """Cross entropy of "this layer already says what the last one says"."""
    final = output.log_assignments[-1].detach()
    losses = []
    for dim, confidences in ((2, output.confidences0), (1, output.confidences1)):
        answer = final.argmax(dim)
        for layer, confidence in zip(output.log_assignments[:-1], confidences, strict=True):
            same = (layer.detach().argmax(dim) == answer)[:, :-1].float()
            losses.append(F.binary_cross_entropy_with_logits(confidence.float(), same))
    return torch.stack(losses).mean()
