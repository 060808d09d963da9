"""The correlation with a window by whole pixels, against the volume of all products sampled in float64."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from matchrt.graph.prepare import prepare
from matchrt.graph.scopes import name_after_modules
from matchrt.model import Target
from matchrt_roma.networks.grids import window_offsets
from matchrt_roma.networks.local_correlation import WindowCorrelation, from_volume
from matchrt_roma.precision import RULES


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


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    """In a graph whose number of directions is open."""
    torch.manual_seed(0)
    batch = torch.export.Dim("directions", min=1, max=4)
    inputs = maps(2, 8, 12, 14)
    program = torch.onnx.export(
        Correlating().eval(), inputs, dynamo=True, dynamic_shapes=({0: batch},) * 3, verbose=False, opset_version=18
    )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


class Stages(torch.nn.Module):
    """Paths as RoMa's, which the precision rules know."""

    def __init__(self) -> None:
        super().__init__()
        refiner = torch.nn.Module()
        refiner.correlation = WindowCorrelation(2)
        stage = torch.nn.Module()
        stage.refiner = refiner
        self.stages = torch.nn.ModuleList([stage])

    def forward(self, query: Tensor, support: Tensor, flow: Tensor) -> Tensor:
        correlation = self.get_submodule("stages.0.refiner.correlation")
        found: Tensor = correlation(query, support, flow)
        return found


class Correlating(torch.nn.Module):
    """The network as core's export has it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Stages()

    def forward(self, query: Tensor, support: Tensor, flow: Tensor) -> Tensor:
        found: Tensor = self.network(query, support, flow)
        return found


@pytest.mark.parametrize("batch", [1, 3])
def test_one_graph_serves_any_number_of_directions(exported: onnx.ModelProto, batch: int) -> None:
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = maps(batch, 8, 12, 14)
    names = [i.name for i in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))
    assert np.abs(found - Correlating()(*inputs).numpy()).max() < 1e-5


@pytest.mark.rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_rtx_builds_it(exported: onnx.ModelProto, precision: str, rtx_builder: ModuleType) -> None:
    target = Target(backend="tensorrt_rtx", precision=precision)
    rules = [replace(r, networks=None) for r in RULES]
    prepared = prepare(name_after_modules(exported), target, rules=rules)
    if precision == "fp16":
        assert prepared.precision is not None
        kept = [k.node for k in prepared.precision.kept]
        assert sum("correlation.places" in name for name in kept) >= 10
        assert any("window of the local correlation" in k.reason for k in prepared.precision.kept)
    size, complaints = rtx_builder.build(prepared.model, {"directions": (1, 2, 4)})
    assert size > 5_000, complaints
