"""The Gaussian process' solve against float64, over the feature families in which it is hard."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from matchrt_roma.networks.anchors import embedding_to_flow
from matchrt_roma.networks.gp import GaussianProcess
from matchrt_roma.networks.grids import pixel_centres
from matchrt_roma.networks.spd import half_solve, inverse_square_root, newton_schulz_scalings

DIM, CHANNELS = 64, 512
FAMILIES = ("random", "smooth", "smooth+mean", "common-mean", "clusters", "constant")
# Largest error of the mean (|mean| up to about 1.2) that a family may show in float32, from its condition number.
BOUND = {"random": 2e-6, "smooth": 5e-6, "smooth+mean": 5e-5, "common-mean": 3e-4, "clusters": 3e-3, "constant": 3e-3}


def features(family: str, side: int, generator: torch.Generator) -> Tensor:
    """Maps `(2, CHANNELS, side, side)` of one family."""

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def field(cells: int) -> Tensor:
        return torch.nn.functional.interpolate(noise(2, CHANNELS, cells, cells), size=(side, side), mode="bicubic")

    if family == "random":
        return noise(2, CHANNELS, side, side)
    if family == "smooth":
        return field(5)
    if family == "smooth+mean":
        return field(5) + 0.8 * noise(1, CHANNELS, 1, 1)
    if family == "common-mean":
        return noise(2, CHANNELS, side, side) + 2.0 * noise(1, CHANNELS, 1, 1)
    if family == "clusters":
        centres = noise(5, CHANNELS)
        label = torch.randint(0, 5, (2, side, side), generator=generator)
        return centres[label].permute(0, 3, 1, 2) + 1e-3 * noise(2, CHANNELS, side, side)
    return noise(1, CHANNELS, 1, 1).expand(2, CHANNELS, side, side).contiguous()


def exact_mean(gp: GaussianProcess, query: Tensor, support: Tensor, basis: Tensor) -> Tensor:
    """The posterior mean in float64 by LAPACK."""
    left, right = (maps[0].flatten(1).T.double().numpy() for maps in (query, support))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
        return np.exp((a @ b.T / (lengths + 1e-6) - 1.0) / gp.temperature)

    system = kernel(right, right) + gp.noise * np.eye(len(right))
    mean = kernel(left, right) @ np.linalg.solve(system, basis.double().numpy())
    return torch.from_numpy(mean.T.reshape(1, -1, *query.shape[-2:]))


def make_gp(seed: int = 0) -> GaussianProcess:
    torch.manual_seed(seed)
    gp = GaussianProcess(DIM, 0.2, 0.1)
    torch.nn.init.uniform_(gp.pos_conv.weight, -math.sqrt(0.5), math.sqrt(0.5))
    return gp.eval()


def solve_error(family: str, side: int, leaf: int, seed: int) -> tuple[float, float]:
    """(our largest error against float64, Cholesky's in float32)."""
    gp = make_gp(seed)
    maps = features(family, side, torch.Generator().manual_seed(seed))
    query, support, basis = maps[:1], maps[1:], gp.basis(side, side)
    exact = exact_mean(gp, query, support, basis)
    mean = gp(query, support, basis, torch.eye(min(leaf, side * side)))
    left, right = (m.flatten(2).transpose(1, 2) for m in (query, support))
    factor = torch.linalg.cholesky(gp.kernel(right, right) + gp.noise * torch.eye(side * side))
    cholesky = gp.kernel(left, right) @ torch.cholesky_solve(basis[None], factor)
    theirs = cholesky.transpose(1, 2).reshape(1, -1, side, side)
    return float((mean - exact).abs().max()), float((theirs - exact).abs().max())


@pytest.mark.parametrize(
    "leaf", [pytest.param(86, marks=pytest.mark.slow), pytest.param(172, marks=pytest.mark.slow), 200]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_at_576_tokens(family: str, leaf: int) -> None:
    ours, cholesky = solve_error(family, 24, leaf, seed=1)
    assert ours <= BOUND[family]
    assert ours <= 4 * cholesky + 2e-6


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(FAMILIES), side=st.integers(2, 14), leaf=st.integers(2, 250), seed=st.integers(0, 2**31 - 1)
)
def test_any_size_leaf_and_seed(family: str, side: int, leaf: int, seed: int) -> None:
    ours, cholesky = solve_error(family, side, leaf, seed)
    assert math.isfinite(ours)
    assert ours <= max(BOUND[family], 8 * cholesky)


@pytest.mark.slow
def test_error_table_at_full_size(capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for side in (37, 40):
        for leaf in (100, 200):
            errors = [solve_error(family, side, leaf, seed=3) for family in FAMILIES]
            rows.append((side * side, leaf, errors))
            assert all(ours <= BOUND[family] for family, (ours, _) in zip(FAMILIES, errors, strict=True))
    with capsys.disabled():
        print(f"\n{'N':>5} {'leaf':>5} " + " ".join(f"{family:>13}" for family in FAMILIES))
        for count, leaf, errors in rows:
            print(f"{count:>5} {leaf:>5} " + " ".join(f"{ours:>13.1e}" for ours, _ in errors))
            print(f"{count:>5} {'chol':>5} " + " ".join(f"{theirs:>13.1e}" for _, theirs in errors))


def test_inverse_square_root_reaches_both_ends_of_the_interval() -> None:
    smallest, largest = 0.1, 220.0
    values = torch.logspace(math.log10(smallest), math.log10(largest), 30)
    basis, _ = torch.linalg.qr(torch.randn(30, 30, generator=torch.Generator().manual_seed(0)))
    matrix = (basis * values) @ basis.T
    root = inverse_square_root(matrix[None], torch.eye(30), smallest, largest)[0]
    assert torch.allclose(root @ matrix @ root, torch.eye(30), atol=2e-4)
    assert newton_schulz_scalings(1.0) == []


def test_scalings_refuse_a_spectrum_that_reaches_zero() -> None:
    with pytest.raises(ValueError, match="does not converge"):
        newton_schulz_scalings(0.0)


def test_half_solve_gives_the_quadratic_form() -> None:
    generator = torch.Generator().manual_seed(2)
    factor = torch.randn(50, 20, generator=generator)
    kernel = factor @ factor.T
    kernel = kernel / kernel.abs().max()
    left, right = torch.randn(50, 3, generator=generator), torch.randn(50, 4, generator=generator)
    halves = half_solve(kernel[None], torch.cat((left, right), 1)[None], torch.eye(13), 0.1, 13)[0]
    exact = left.double().T @ torch.linalg.solve(kernel.double() + 0.1 * torch.eye(50), right.double())
    assert torch.allclose((halves[:, :3].T @ halves[:, 3:]).double(), exact, atol=1e-4)


@pytest.mark.parametrize("shift", [(0, 0), (2, -3)])
def test_readout_recovers_a_known_shift(shift: tuple[int, int]) -> None:
    """Random features moved by whole tokens: the read-out must find every token that stayed, and doubt the others."""
    side = 12
    gp = GaussianProcess(512, 0.2, 0.1)
    torch.manual_seed(5)
    torch.nn.init.uniform_(gp.pos_conv.weight, -math.sqrt(0.5), math.sqrt(0.5))
    torch.nn.init.uniform_(gp.pos_conv.bias, -math.sqrt(0.5), math.sqrt(0.5))
    scene = torch.randn(1, CHANNELS, side + 8, side + 8, generator=torch.Generator().manual_seed(5))
    query = scene[..., 4 : 4 + side, 4 : 4 + side]
    support = scene[..., 4 + shift[1] : 4 + shift[1] + side, 4 + shift[0] : 4 + shift[0] + side]
    mean = gp(query, support, gp.basis(side, side), torch.eye(100))
    anchors = pixel_centres(64, 64).reshape(-1, 2)
    flow, certainty = embedding_to_flow(mean.flatten(2).transpose(1, 2), anchors, gp.basis(64, 64))
    centres = pixel_centres(side, side).reshape(1, -1, 2)
    target = centres - torch.tensor(shift) * 2.0 / side
    visible = (target.abs() < 1).all(-1)
    error = (flow - target).abs().amax(-1)
    assert float(error[visible].max()) < 0.25 * 2 / 64  # a quarter of an anchor cell
    assert float(certainty[visible].min()) > 0.8
    if (~visible).any():
        assert float(certainty[~visible].max()) < 0.3


def test_readout_certainty_is_zero_where_nothing_is_alike() -> None:
    gp = make_gp()
    mean = torch.zeros(1, 4, DIM)
    _, certainty = embedding_to_flow(mean, pixel_centres(8, 8).reshape(-1, 2), gp.basis(8, 8))
    assert torch.equal(certainty, torch.zeros(1, 4))
