"""Every network of every plugin runs on a GPU as the torch backend runs it: no tensor of its own stays behind on the CPU.

There is no GPU here. Fake tensors say that they lie on one, hold no values and are held to torch's rules of devices and types. The
networks have their full widths and fewer layers of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from matchrt.backends.torch.engines import DeviceSession, open_network
from matchrt.backends.torch.options import parse_options
from matchrt.bundle.manifest import NetworkContract, TensorContract
from matchrt.model import Settings, TensorSpec, Variant
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.settings import resolve
from matchrt_eloftr.networks import Architecture
from matchrt_eloftr.networks import network as eloftr_network
from matchrt_lightglue.variants import VARIANTS
from matchrt_roma import build as roma_build

SIDE = 64
"""What the networks read where they ask for a number inside a tensor: the height or width of EfficientLoFTR's valid rectangle."""

Case = tuple[str, Mapping[str, object]]
CASES: Sequence[Case] = (
    ("superpoint-lightglue:full", {"size": (64, 96), "keypoints": 32}),
    ("eloftr:full", {"size": (96, 128)}),
    ("eloftr:full", {"size": (416, 448), "dynamic": True}),
    ("matchanything-eloftr:full", {"size": (96, 128), "slots": None, "pairs": 1}),
    ("roma:full", {"size": (56, 70), "upsample_size": (64, 72)}),
    ("roma:encoder-gp", {"size": (56, 70)}),
)
"""Between them every network and every form of one."""
MORE: Sequence[Case] = (
    ("superpoint-lightglue:mini", {"size": (64, 96), "keypoints": 32}),
    ("eloftr:full", {"size": (96, 128), "pairs": 1, "form": "deploy"}),
    ("eloftr:opt", {"size": (96, 128)}),
    ("matchanything-eloftr:full", {"size": (96, 128)}),
    ("roma:full", {"size": (56, 70), "upsample": False, "symmetric": False}),
    ("roma:coarse", {"size": (56, 70)}),
    ("matchanything-roma:full", {"size": (56, 70), "upsample_size": (64, 72)}),
    ("matchanything-roma:coarse", {"size": (56, 70)}),
    ("matchanything-roma:encoder-gp", {"size": (56, 70)}),
)
RUNS = [
    *((*case, "fp32", "autocast") for case in (*CASES, *MORE)),
    *((*case, "fp16", half) for case in CASES for half in ("autocast", "network")),
]
aten = torch.ops.aten


class Fakes(FakeTensorMode):
    """Fake tensors on a GPU that is not there: nothing is copied to it, whatever torch says."""

    @property
    def avoid_device_init(self) -> bool:
        return True


class Answers(TorchDispatchMode):
    """What fake tensors cannot tell: numbers, and cuDNN's grid sampling, which is torch's own as far as devices and types go."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten.item.default, aten._local_scalar_dense.default):
            return SIDE
        if func is aten.grid_sampler.default:
            return aten.grid_sampler_2d.default(*args)
        return func(*args, **(kwargs or {}))


def _apply(self: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """As torch's own, with new parameters: torch swaps the contents of fake ones, which they refuse."""
    for child in self.children():
        child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            self._parameters[name] = nn.Parameter(fn(parameter), requires_grad=False)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Every tensor made in the block is fake, and torch says that there is a GPU."""
    with ExitStack() as stack:
        stack.enter_context(Fakes())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(nn.Module, "_apply", _apply)
        stack.enter_context(Answers())
        yield


@pytest.fixture(scope="module", autouse=True)
def _shallow() -> Iterator[None]:
    """Layers that only repeat others are left out: they take the time and find nothing more."""
    with pytest.MonkeyPatch.context() as patch:
        config = replace(roma_build.CONFIG, vit_depth=1, decoder_depth=1, hidden_blocks=1)
        patch.setattr(roma_build, "CONFIG", config)
        patch.setattr(eloftr_network, "Architecture", lambda: Architecture(blocks=(1, 2, 2), layers=1))
        for name, sizes in VARIANTS.items():
            patch.setitem(VARIANTS, name, replace(sizes, n_layers=2))
        yield


def chosen(name: str, given: Mapping[str, object]) -> tuple[MatcherHooks, Variant, Settings]:
    identifier, _, variant = name.partition(":")
    hooks = MatcherHooks(get_plugins(), get_plugins().matcher(identifier))
    found = hooks.matcher.variant(variant)
    settings = resolve(hooks.matcher.settings, ("variant", found.settings), ("flag", given), environment={})
    return hooks, found.wired(settings), settings


def contract_of(network: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> NetworkContract:
    tensors = [
        tuple(TensorContract(name=t.name, dtype=t.dtype, shape=(), axes=t.axes, meaning=t.meaning) for t in specs)
        for specs in (inputs, outputs)
    ]
    return NetworkContract(
        name=network, file=f"{network}.onnx", external_data=None, opset=18, inputs=tensors[0], outputs=tensors[1]
    )


class Manifest:
    """What is read of a bundle's."""

    def __init__(self, hooks: MatcherHooks, variant: Variant) -> None:
        self.networks = tuple(contract_of(n.name, n.inputs, n.outputs) for n in hooks.matcher.networks_of(variant))


def run_all(name: str, given: Mapping[str, object], precision: str, half: str) -> None:
    """Open every network on the GPU and run it on its example inputs, as a session of the torch backend."""
    hooks, variant, settings = chosen(name, given)
    examples = hooks.example_inputs(variant, settings)
    options = parse_options(precision, {"device": "cuda", "half": half})
    with pretended_gpu():
        network = hooks.build_network(variant, settings)
        manifest: Any = Manifest(hooks, variant)
        for network_name, engine in open_network(manifest, hooks, network, options).items():
            session = engine.session()
            assert isinstance(session, DeviceSession)
            inputs = {n: session.to_device(array) for n, array in examples[network_name].tensors.items()}
            for tensor, found in zip(engine.contract.outputs, session.run_on_device(inputs).values(), strict=True):
                assert found.tensor.device.type == "cuda", tensor.name
                assert found.dtype == tensor.dtype, tensor.name


@pytest.mark.parametrize(("name", "given", "precision", "half"), RUNS)
def test_nothing_stays_on_the_cpu(name: str, given: Mapping[str, object], precision: str, half: str) -> None:
    run_all(name, given, precision, half)


def test_every_variant_is_among_the_cases() -> None:
    every = {f"{m}:{v.name}" for m, spec in get_plugins().matchers.items() for v in spec.variants}
    assert every == {name for name, _ in (*CASES, *MORE)}
