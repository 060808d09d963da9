import pytest
import torch
from torch import nn

from matchrt.patches import (
    DecomposedLayerNorm,
    Patch,
    apply_patches,
    decomposed_layer_norm,
    layer_norm_patches,
    replaced_modules,
)


def network(**options: bool) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12, eps=1e-3, **options), nn.Sequential(nn.LayerNorm((5, 12))))
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net.eval()


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}])
def test_the_decomposition_equals_the_operator_and_is_taken_back(options: dict[str, bool]) -> None:
    net = network(**options)
    x = torch.randn(3, 5, 6) * 40 + 300  # a mean far above the spread: what a careless variance loses
    before, names = net(x), sorted(net.state_dict())
    originals = [m for m in net.modules() if isinstance(m, nn.LayerNorm)]
    with apply_patches(net, [decomposed_layer_norm()]) as patched:
        assert patched is net
        assert not any(isinstance(m, nn.LayerNorm) for m in net.modules())
        assert sum(isinstance(m, DecomposedLayerNorm) for m in net.modules()) == 2
        assert sorted(net.state_dict()) == names
        torch.testing.assert_close(net(x), before, atol=decomposed_layer_norm().tolerance, rtol=0)
        assert not net[1].training
    assert [m for m in net.modules() if isinstance(m, nn.LayerNorm)] == originals
    assert torch.equal(net(x), before)


def test_parameters_are_shared_so_a_load_reaches_the_patched_network() -> None:
    net = network()
    state = {name: torch.randn_like(tensor) for name, tensor in net.state_dict().items()}
    x = torch.randn(2, 5, 6)
    with apply_patches(net, [decomposed_layer_norm()]):
        net.load_state_dict(state, strict=True)
        patched = net(x)
    torch.testing.assert_close(net(x), patched, atol=1e-5, rtol=0)


def test_statistics_stay_in_float32_for_half_input() -> None:
    norm = nn.LayerNorm(64).eval()
    x = (torch.randn(4, 64) * 2000).to(torch.float16)  # squares overflow float16
    y = DecomposedLayerNorm(norm)(x)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), norm(x.float()), atol=2e-3, rtol=0)


def test_patches_are_undone_in_reverse_also_after_an_error() -> None:
    net = nn.Sequential(nn.ReLU())
    original = net[0]
    first = Patch("a", "", True, 0, lambda n: replaced_modules(n, lambda m: nn.GELU() if type(m) is nn.ReLU else None))
    second = Patch("b", "", True, 0, lambda n: replaced_modules(n, lambda m: nn.SiLU() if type(m) is nn.GELU else None))
    seen = []

    def use() -> None:
        with apply_patches(net, [first, second]):
            seen.append(type(net[0]))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        use()
    assert seen == [nn.SiLU]
    assert net[0] is original


@pytest.mark.parametrize(("opset", "names"), [(16, ["decomposed-layer-norm"]), (17, []), (20, [])])
def test_the_operator_is_kept_where_it_exists(opset: int, names: list[str]) -> None:
    assert [patch.name for patch in layer_norm_patches(opset)] == names
