"""From scores over an anchor grid to coordinates: the learned decoder's read-out, and the Gaussian process' own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding


def gather_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a constant `(A, D)` at `index` `(B, N)`, `(B, N, D)`."""
    return embedding(index, table)


def classes_to_flow(logits: Tensor, anchors: Tensor) -> Tensor:
    """Anchor logits `(B, N, A)` to coordinates `(B, N, 2)` (RoMa, section 3.3).

    The best anchor and its four neighbours, averaged by probability. `anchors` is `(A, 2)`, row-major over a square.
    Neighbour indices are clamped to [0, A - 1] and wrap at row ends, as upstream's do.
    """
    count = anchors.shape[0]
    side = round(count**0.5)
    probabilities = logits.float().softmax(dim=-1)
    best = probabilities.argmax(dim=-1)
    total: Tensor | None = None
    flow: Tensor | None = None
    for step in (-1, 0, 1, -side, side):
        index = (best + step).clamp(0, count - 1)
        weight = probabilities.gather(-1, index[..., None])
        term = weight * gather_rows(anchors, index)
        flow = term if flow is None else flow + term
        total = weight if total is None else total + weight
    assert flow is not None
    assert total is not None
    return flow / total


def embedding_to_flow(mean: Tensor, anchors: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Read a posterior mean out on an anchor grid without the learned decoder.

    `mean` is `(B, N, D)`, `anchors` `(A, 2)` row-major over a square, `basis` `(A, D)` their Fourier embedding.
    Under Gaussian noise the likeliest anchor is the one whose embedding is nearest in angle; a parabola through its
    neighbours' cosines places the maximum between anchors (at the frame's edge the coordinate stays on the anchor).
    The certainty is the share of the anchor's embedding that the mean explains, 1 - |mean - e|² / |e|², in [0, 1]:
    one where the mean is a single place's embedding, zero where similarity is absent or spread over many places.

    Returns coordinates `(B, N, 2)` and certainty `(B, N)`.
    """
    count = anchors.shape[0]
    side = round(count**0.5)
    mean = mean.float()
    lengths = (basis * basis).sum(dim=-1).sqrt()
    cosines = mean @ (basis / lengths[:, None]).T
    best = cosines.argmax(dim=-1)
    peak = cosines.gather(-1, best[..., None])[..., 0]
    column = best - side * torch.div(best, side, rounding_mode="floor")
    shift_x = _parabola(cosines, best, peak, 1, (column > 0) & (column < side - 1))
    shift_y = _parabola(cosines, best, peak, side, (best >= side) & (best < count - side))
    flow = gather_rows(anchors, best) + torch.stack((shift_x, shift_y), dim=-1) * (2.0 / side)
    length = gather_rows(lengths[:, None], best)[..., 0]
    energy = (mean * mean).sum(dim=-1)
    residual = energy - 2.0 * peak * length + length * length
    return flow, (1.0 - residual / (length * length)).clamp(0.0, 1.0)


def _parabola(cosines: Tensor, best: Tensor, peak: Tensor, step: int, inside: Tensor) -> Tensor:
    """Sub-anchor offset in [-0.5, 0.5] of the maximum along one axis; zero where a neighbour is missing."""
    last = cosines.shape[-1] - 1
    before = cosines.gather(-1, (best - step).clamp(0, last)[..., None])[..., 0]
    after = cosines.gather(-1, (best + step).clamp(0, last)[..., None])[..., 0]
    curvature = (2.0 * peak - before - after).clamp(min=1e-12)
    offset = (0.5 * (after - before) / curvature).clamp(-0.5, 0.5)
    return torch.where(inside, offset, torch.zeros_like(offset))
