from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def part_graph() -> Callable[[str], Any]:
    """`part_graph(name)`: the tiny network's part as exported for one pair at opset 18, no pass applied; tests must not change it."""
    from roma_files import HIGH, SIZE
    from roma_oracle import make_twins, tiny_config

    import matchrt_roma.build
    from matchrt.export.onnx_export import export_network
    from matchrt.model import Target
    from matchrt.plugins import MatcherHooks, get_plugins
    from matchrt.settings import resolve

    network = make_twins(37, SIZE, HIGH).ours
    hooks = MatcherHooks(get_plugins(), get_plugins().matcher("roma"))
    sizes = {"size": f"{SIZE}x{SIZE}", "upsample_size": f"{HIGH}x{HIGH}", "leaf": 40}
    settings = resolve(hooks.matcher.settings, ("flag", sizes), environment={})

    @lru_cache
    def graph(name: str) -> Any:
        variant = next(v for v in hooks.matcher.variants if name in {n.name for n in hooks.matcher.networks_of(v)})
        part = next(n for n in hooks.matcher.networks_of(variant) if n.name == name)
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(matchrt_roma.build, "CONFIG", tiny_config(37))
            example = hooks.example_inputs(variant, settings)[name]
            return export_network(network.get_submodule(part.module_path), part, example, Target())

    return graph
