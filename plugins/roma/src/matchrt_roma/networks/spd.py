"""Solving with a symmetric positive definite matrix, using matrix products only.

A = G Gᵀ with G block lower triangular whose diagonal blocks are square roots: a block Cholesky factorisation in which
the leaves' inverse square roots come from the coupled Newton-Schulz iteration (Higham, Functions of Matrices, section
6.7) with the scaling of each step chosen for the interval that holds the spectrum. Every scalar is a Python constant:
ONNX sees MatMul, Sub, Mul, Concat and Slice, no Inverse and no loop. It is stable because every Schur complement of A
keeps A's smallest eigenvalue as a lower bound. Float32 only: TF32 or half inside it loses the solution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def newton_schulz_scalings(lowest: float) -> list[float]:
    """Scalings r of the iteration T = 1.5 r I - 0.5 r³ Z Y for a spectrum of Y₀ in [`lowest`², 1].

    Iterates the worst case until its distance from one is below float32's resolution.
    """
    scalings = []
    while 1.0 - lowest > 3e-8:
        scaling = math.sqrt(3.0 / (1.0 + lowest + lowest * lowest))
        scalings.append(scaling)
        lowest = 0.5 * scaling * lowest * (3.0 - (scaling * lowest) ** 2)
        if len(scalings) > 64:
            raise ValueError(f"the iteration does not converge from {lowest}")
    return scalings


def inverse_square_root(matrix: Tensor, identity: Tensor, smallest: float, largest: float) -> Tensor:
    """P with P A Pᵀ = I, close to A^(-1/2), for A `(B, n, n)` with eigenvalues in [`smallest`, `largest`]."""
    left = matrix / largest
    right: Tensor | None = None
    for scaling in newton_schulz_scalings(math.sqrt(smallest / largest)):
        product = left if right is None else right @ left
        step = (1.5 * scaling) * identity - (0.5 * scaling**3) * product
        left = left @ step
        right = step if right is None else step @ right
    if right is None:
        right = identity.expand_as(matrix)
    root = right / math.sqrt(largest)
    # The iteration's rounding grows with the condition; one step on the residual removes it to first order.
    residual = identity - (root @ matrix) @ root.transpose(-1, -2)
    return root + 0.5 * (residual @ root)


def half_solve(kernel: Tensor, rhs: Tensor, identity: Tensor, noise: float, leaf: int) -> Tensor:
    """H = G⁻¹ `rhs` for A = `kernel` + `noise`·I = G Gᵀ, so that Xᵀ A⁻¹ Y = (G⁻¹X)ᵀ (G⁻¹Y).

    `kernel` is `(B, n, n)`, positive semi-definite with entries of magnitude at most 1; `rhs` is `(B, n, m)`. Blocks of
    at most `leaf` rows are not split further; `identity` is a constant identity of at least `leaf` (or n) rows. The
    noise is added at the leaves, where the diagonal is first used.
    """
    size = kernel.shape[-1]
    if size <= leaf:
        unit = identity[:size, :size]
        return inverse_square_root(kernel + noise * unit, unit, noise, 1.1 * (size + noise)) @ rhs
    half = size // 2
    columns = size - half
    packed = torch.cat((kernel[:, :half, half:], rhs[:, :half]), dim=-1)
    first = half_solve(kernel[:, :half, :half], packed, identity, noise, leaf)
    coupling = first[..., :columns]
    down = coupling.transpose(-1, -2) @ first
    schur = kernel[:, half:, half:] - down[..., :columns]
    bottom = half_solve(schur, rhs[:, half:] - down[..., columns:], identity, noise, leaf)
    return torch.cat((first[..., columns:], bottom), dim=1)
