"""`convert`: checkpoint to checked bundle. What it writes appears whole, or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from matchrt.bundle.manifest import FILE_NAME, BundleManifest
from matchrt.errors import UsageError
from matchrt.export.check import CheckResult, run_check
from matchrt.export.describe import Built, build_manifest
from matchrt.export.onnx_export import check_opset, export_network, save_model, without_nodes
from matchrt.export.weights import LoadedWeights, load_weights, random_weights, read_weights
from matchrt.files.atomic import atomic_folder
from matchrt.graph.passes import BUILT_IN, run_passes
from matchrt.model import ExampleInputs, Settings, Stage, Target, Variant
from matchrt.patches import apply_patches
from matchrt.plugins import MatcherHooks, Plugins, get_plugins
from matchrt.progress import Progress, Silent, stage
from matchrt.settings import resolve


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """What to convert. `weights` maps roles ("" is the main file) to checkpoints; exactly one of it and `random_seed` is given."""

    matcher: str
    output: Path
    variant: str | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)
    random_seed: int | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    settings_file: Mapping[str, object] = field(default_factory=dict)
    opset: int = 18
    allow_missing: tuple[str, ...] = ()
    replace: bool = False
    check_pairs: Sequence[tuple[str, Any, Any]] | None = None
    """(name, image0, image1) to check on; None means the shipped samples."""


@dataclass(frozen=True, kw_only=True)
class ConvertResult:
    """What conversion made."""

    bundle: Path
    manifest: BundleManifest
    weights: LoadedWeights
    check: CheckResult
    seconds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The JSON that `matchrt convert --json` prints."""
        return {
            "bundle": str(self.bundle),
            "matcher": self.manifest.matcher.id,
            "variant": self.manifest.matcher.variant,
            "random_weights": self.manifest.random_weights,
            "weights": self.weights.counts(),
            "check": self.check.to_dict(),
            "seconds": dict(self.seconds),
        }


def convert(
    matcher: str,
    output: str | os.PathLike[str],
    *,
    variant: str | None = None,
    weights: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None = None,
    random_seed: int | None = None,
    opset: int = 18,
    allow_missing: Sequence[str] = (),
    replace: bool = False,
    **settings: object,
) -> ConvertResult:
    """Convert a checkpoint to a bundle in folder `output`.

    `weights` is the checkpoint, or a mapping of roles to checkpoints; None takes the file that ships with the variant's package.
    Raises `WeightsError`, `ExportError`, `VerificationError`, `UsageError`; then nothing is left behind.
    """
    files = weights if isinstance(weights, Mapping) else {} if weights is None else {"": weights}
    request = ConvertRequest(
        matcher=matcher,
        output=Path(output),
        variant=variant,
        weights={role: Path(path) for role, path in files.items()},
        random_seed=random_seed,
        settings=settings,
        opset=opset,
        allow_missing=tuple(allow_missing),
        replace=replace,
    )
    return run_convert(request, get_plugins())


def run_convert(request: ConvertRequest, plugins: Plugins, progress: Progress | None = None) -> ConvertResult:
    """Carry out `request`."""
    progress = progress or Silent()
    clock = _Clock()
    spec = plugins.matcher(request.matcher)
    variant = spec.variant(request.variant)
    hooks = MatcherHooks(plugins, spec)
    check_opset(request.opset)
    _check_output(request.output, request.replace)
    with clock("weights"):
        network, loaded, settings = _network(hooks, plugins, variant, request, progress)
    variant = variant.wired(settings)
    target = Target(opset=request.opset)
    with atomic_folder(request.output, replace=request.replace) as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with clock("export"):
            built = _export(hooks, variant, settings, network, target, folder, progress)
        with clock("check"):
            pairs = _sample_pairs(hooks, variant) if request.check_pairs is None else request.check_pairs
            graphs = {n.name: folder / f"{n.name}.onnx" for n in spec.networks_of(variant)}
            check = run_check(hooks, variant, settings, network, graphs, pairs, progress)
            check.require()
        manifest = build_manifest(spec, variant, settings, loaded, built, check, folder, request)
        (folder / FILE_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")
    return ConvertResult(bundle=request.output, manifest=manifest, weights=loaded, check=check, seconds=clock.spans())


def _network(
    hooks: MatcherHooks, plugins: Plugins, variant: Variant, request: ConvertRequest, progress: Progress
) -> tuple[torch.nn.Module, LoadedWeights, Settings]:
    if request.random_seed is not None:
        if request.weights:
            raise UsageError("--weights and --random-weights exclude each other")
        settings = _settings(hooks, variant, request, {})
        with stage(progress, "random weights"):
            return *random_weights(hooks, variant, settings, request.random_seed), settings
    _settings(hooks, variant, request, {})  # a wrong setting is told before a large file is read
    with stage(progress, "read weights"):
        read = read_weights(hooks, variant, request.weights)
        settings = _settings(hooks, variant, request, read.decided)
        return *load_weights(hooks, plugins, variant, settings, read, request.allow_missing), settings


def _export(
    hooks: MatcherHooks,
    variant: Variant,
    settings: Settings,
    network: torch.nn.Module,
    target: Target,
    folder: Path,
    progress: Progress,
) -> list[Built]:
    examples: Mapping[str, ExampleInputs] = hooks.example_inputs(variant, settings)
    patches = hooks.onnx_patches(network, target)
    built = []
    networks = hooks.matcher.networks_of(variant)
    with stage(progress, "export", len(networks)), apply_patches(network, patches):
        for spec in networks:
            progress.advance(0, spec.name)
            module = network.get_submodule(spec.module_path)
            model = export_network(module, spec, examples[spec.name], target)
            passes = (*BUILT_IN, *hooks.graph_passes(target, Stage.EXPORT, spec.name))
            model = run_passes(model, passes, spec.name)
            side = save_model(model, folder / f"{spec.name}.onnx")
            built.append(Built(spec, without_nodes(model), examples[spec.name], side, tuple(patches), passes))
            progress.advance(1)
    return built


def _settings(
    hooks: MatcherHooks, variant: Variant, request: ConvertRequest, decided: Mapping[str, object]
) -> Settings:
    return resolve(
        hooks.matcher.settings,
        ("variant", variant.settings),
        ("weights", decided),
        ("file", request.settings_file),
        ("flag", request.settings),
    )


def _check_output(output: Path, replace: bool) -> None:
    if output.exists() and not replace:
        raise UsageError(f"{output} exists already", hint="choose another -o, or replace it with --replace")
    if output.exists() and not (output / FILE_NAME).is_file():
        raise UsageError(f"{output} exists and is not a bundle, so --replace leaves it alone", hint="choose another -o")


def _sample_pairs(hooks: MatcherHooks, variant: Variant) -> list[tuple[str, Any, Any]]:
    from matchrt.samples import sample_pairs

    pairs = [(p.name, p.image0, p.image1) for p in sample_pairs()]
    return pairs[: hooks.parity(variant).pairs or None]


class _Clock:
    """Wall time of named phases, in seconds."""

    def __init__(self) -> None:
        self._spans: dict[str, float] = {}
        self._begin = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._spans[name] = time.perf_counter() - begin

    def spans(self) -> dict[str, float]:
        """Seconds of each phase, and their total."""
        return {n: round(s, 3) for n, s in {**self._spans, "total": time.perf_counter() - self._begin}.items()}
