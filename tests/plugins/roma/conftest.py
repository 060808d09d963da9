from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from roma_files import HIGH, SIZE, Cli, Files, write_files
from roma_oracle import make_twins, tiny_config

import matchrt_roma.build
from matchrt.cli import run
from matchrt.export.onnx_export import export_network
from matchrt.model import Target
from matchrt.plugins import MatcherHooks, get_plugins
from matchrt.samples import sample_pairs
from matchrt.settings import resolve


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def part_graph() -> Callable[[str], Any]:
    """`part_graph(name)`: the tiny network's part as exported for one pair at opset 18, no pass applied; tests must not change it."""
    network = make_twins(37, SIZE, HIGH).ours
    hooks = MatcherHooks(get_plugins(), get_plugins().matcher("roma"))
    sizes = {"size": f"{SIZE}x{SIZE}", "upsample_size": f"{HIGH}x{HIGH}", "leaf": 40}
    found: dict[str, tuple[Any, Any]] = {}
    ways = [(v, {}) for v in hooks.matcher.variants] + [(hooks.matcher.variant("full"), {"upsample": False})]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(matchrt_roma.build, "CONFIG", tiny_config(37))
        for variant, more in ways:
            layers = ("variant", variant.settings), ("flag", {**sizes, **more})
            settings = resolve(hooks.matcher.settings, *layers, environment={})
            wired = variant.wired(settings)
            examples = hooks.example_inputs(wired, settings)
            for part in hooks.matcher.networks_of(wired):
                found.setdefault(part.name, (part, examples[part.name]))

    @lru_cache
    def graph(name: str) -> Any:
        part, example = found[name]
        with torch.no_grad():
            return export_network(network.get_submodule(part.module_path), part, example, Target())

    return graph


def export_once(done: dict[tuple[object, ...], Any]) -> Callable[..., Any]:
    """`export_network` for several conversions: parts that are alike in weights, sizes and all are exported once.

    Every conversion checks the graph that it gets against its own network, so that a wrong share fails.
    """

    def shared(network: torch.nn.Module, spec: Any, example: Any, target: Any) -> Any:
        weights = tuple((n, hash(t.numpy().tobytes())) for n, t in network.state_dict().items())
        inputs = tuple((n, t.shape) for n, t in example.tensors.items())
        # What modules keep beside their weights: sizes, temperatures, which matcher's quirks to follow.
        kept = repr([(type(m), {k: v for k, v in vars(m).items() if k[0] != "_"}) for m in network.modules()])
        key = (spec, inputs, repr(example.dynamic), target, weights, kept)
        if key not in done:
            done[key] = export_network(network, spec, example, target)
        return copy.deepcopy(done[key])

    return shared


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Published files of the tiny network."""
    return write_files(tmp_path_factory.mktemp("published"), tiny_config(37))


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run the command line, expect success, and return stdout."""

    def call(*argv: object) -> str:
        capfd.readouterr()
        assert run([str(a) for a in argv]) == 0, capfd.readouterr().err
        return str(capfd.readouterr().out)

    return call


@pytest.fixture(scope="session")
def bundles(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Bundles of the tiny network for up to three pairs, each converted once; odd sizes, to tell height from width.

    A name is MATCHER:VARIANT, then settings: "roma:full upsample=false".
    """
    made: dict[str, Path] = {}
    exports: dict[tuple[object, ...], Any] = {}
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(name: str) -> Path:
        if name not in made:
            made[name] = folder / name.replace(":", "-").replace(" ", "-")
            matcher, *settings = name.split()
            chosen = ["size=112x140", "upsample_size=160x128", "pairs=3", *settings]
            command = ["convert", matcher, *files.weights, "-o", made[name], *(w for s in chosen for w in ("--set", s))]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(matchrt_roma.build, "CONFIG", tiny_config(37))
                patch.setattr("matchrt.export.convert.export_network", export_once(exports))
                assert run([str(a) for a in command]) == 0
        return made[name]

    return bundle


@pytest.fixture(scope="session")
def pair() -> tuple[Path, Path]:
    found = sample_pairs()[0]
    return Path(str(found.image0)), Path(str(found.image1))
