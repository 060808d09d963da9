"""What the modules of a PyTorch network are given and return, while it runs in the form that was exported."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

from matchrt.backends.torch.arrays import as_tensor
from matchrt.backends.torch.engines import arithmetic, choose_device
from matchrt.backends.torch.options import TorchOptions
from matchrt.backends.torch.reference import reference_network
from matchrt.bundle import Bundle
from matchrt.export.onnx_export import named_outputs
from matchrt.model import Target
from matchrt.patches import apply_patches
from matchrt.plugins import MatcherHooks


@dataclass
class Calls:
    """Float tensors that one module was given and returned, over all its calls in order."""

    given: list[np.ndarray] = field(default_factory=list)
    returned: list[np.ndarray] = field(default_factory=list)


class Modules:
    """The reference network of a bundle, ready to be looked into."""

    def __init__(self, bundle: Bundle, hooks: MatcherHooks, options: TorchOptions) -> None:
        self.bundle, self.hooks, self.options = bundle, hooks, options
        self.device = choose_device(options.device)
        self.network = reference_network(bundle.manifest, hooks, options.checkpoint, foreign=options.foreign)

    def run(self, network: str, inputs: Mapping[str, np.ndarray], paths: Collection[str]) -> dict[str, Calls]:
        """Run one network on `inputs` and return what the modules at `paths` were given and returned; "" is the network itself."""
        contract = self.bundle.manifest.network(network)
        patches = self.hooks.onnx_patches(self.network, Target(opset=contract.opset))
        calls: dict[str, Calls] = {}
        self.network.cpu()  # where conversion applied the patches; the run before may have left it on the device
        with apply_patches(self.network, patches), torch.inference_mode():
            part = self.network.get_submodule(self.hooks.matcher.network(network).module_path).to(self.device)
            handles = [
                module.register_forward_hook(_recorder(calls.setdefault(path, Calls())), with_kwargs=True)
                for path, module in part.named_modules(remove_duplicate=False)
                if path and path in paths
            ]
            try:
                with arithmetic(self.device, self.options):
                    answer = part(*(as_tensor(inputs[t.name], self.device) for t in contract.inputs))
                outputs = named_outputs(answer, [t.name for t in contract.outputs])
                calls[""] = Calls(returned=_floats(list(outputs.values())))
            finally:
                for handle in handles:
                    handle.remove()
        return calls


def _recorder(calls: Calls) -> Any:
    def record(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.given += _floats((args, kwargs))
        calls.returned += _floats(output)

    return record


def _floats(tree: Any) -> list[np.ndarray]:
    """Copies of the float tensors in nested containers, dataclasses included; one that occurs twice is taken once."""
    found: dict[int, torch.Tensor] = {}
    for leaf in _pytree.tree_leaves(tree):
        tensors = (
            [leaf] if isinstance(leaf, torch.Tensor) else list(vars(leaf).values()) if hasattr(leaf, "__dict__") else []
        )
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                found.setdefault(id(tensor), tensor)
    return [t.detach().float().cpu().numpy().copy() for t in found.values()]
