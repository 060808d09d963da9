"""The correlation with a window by whole pixels, against the volume of all products sampled in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from matchrt_roma.networks.grids import window_offsets
from matchrt_roma.networks.local_correlation import WindowCorrelation, from_volume


def maps(batch: int, channels: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, support and a flow that leaves the map on every side, also far away and exactly onto its edges."""
    torch.manual_seed(height)
    query, support = torch.randn(2, batch, channels, height, width).unbind(0)
    flow = torch.rand(batch, height, width, 2) * 3 - 1.5
    flow[0, 0, :5] = torch.tensor([[40.0, -1e4], [-1.0, 1.0], [1.0, -1.0], [0.0, 0.0], [1e6, 1e6]])
    return query, support, flow


@pytest.mark.parametrize(
    ("batch", "channels", "height", "width", "radius"), [(2, 16, 20, 24, 3), (2, 8, 31, 17, 2), (1, 8, 12, 12, 7)]
)
def test_it_is_the_sampled_volume(batch: int, channels: int, height: int, width: int, radius: int) -> None:
    query, support, flow = maps(batch, channels, height, width)
    offsets = window_offsets(radius, height, width).double()
    expected = from_volume(query.double(), support.double(), flow.double(), offsets)
    found = WindowCorrelation(radius)(query, support, flow)
    assert found.shape == (batch, (2 * radius + 1) ** 2, height, width)
    assert (found - expected).abs().max() < 2e-5
    assert expected.abs().max() > 1
    outside = flow.abs().amax(-1) > 10
    assert outside.any()
    assert found.permute(0, 2, 3, 1)[outside].abs().max() == 0


def test_coordinates_need_float32() -> None:
    """Why the precision rule keeps them: rounded to half, whole pixels of a large map come out wrong."""
    query, support, _ = maps(1, 4, 8, 216)
    flow = torch.rand(1, 8, 216, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    exact = WindowCorrelation(2)(query, support, flow)
    rounded = WindowCorrelation(2)(query, support, flow.half().float())
    assert (rounded - exact).abs().max() > 0.1


def test_both_forms_agree_where_both_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """One refiner with the volume and one without."""
    from matchrt_roma.networks import refiner

    torch.manual_seed(0)
    network = refiner.Refiner(2 * 8 + 4 + 25, 4, 2, 1).eval()
    query, support, flow = maps(2, 8, 14, 18)
    inputs = (query, support, flow, torch.randn(2, 2, 14, 18), window_offsets(2, 14, 18))
    with torch.no_grad():
        volume = network(*inputs)
        monkeypatch.setattr(refiner, "VOLUME_LIMIT", 0)
        windows = network(*inputs)
    assert not torch.equal(volume, windows)
    assert (volume - windows).abs().max() < 1e-4
