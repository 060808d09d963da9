"""Put weights into a network: from checkpoints with every key accounted for, or random ones that say so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from matchrt.bundle.manifest import SourceFile
from matchrt.errors import MatchrtError, UsageError, WeightsError
from matchrt.export.candidates import candidates
from matchrt.model import MatcherSpec, Settings, Variant
from matchrt.plugins import MatcherHooks, Plugins
from matchrt.weights.account import account, load_into, network_state
from matchrt.weights.apply import PRIMARY, apply_rules
from matchrt.weights.fit import better_fit, fit
from matchrt.weights.locate import find_weights
from matchrt.weights.readers import Checkpoint, read_checkpoint
from matchrt.weights.report import WeightReport

CLASSES = ("loaded", "backfilled", "dropped", "missing", "unexpected", "misshapen")


@dataclass(frozen=True)
class LoadedWeights:
    """Where a network's weights came from. `report` is the account as JSON-able values; empty for random weights."""

    sources: tuple[SourceFile, ...]
    random_seed: int | None
    licence: str
    report: dict[str, Any]

    def counts(self) -> dict[str, Any]:
        """How many names are in each class."""
        counts: Mapping[str, int] = self.report.get("counts", {})
        found: dict[str, Any] = {name: counts.get(name, 0) for name in CLASSES}
        if counts.get("allowed_missing"):
            found["allowed_missing"] = counts["allowed_missing"]
        if self.random_seed is not None:
            found["random_seed"] = self.random_seed
        return found


def random_weights(
    hooks: MatcherHooks, variant: Variant, settings: Settings, seed: int
) -> tuple[torch.nn.Module, LoadedWeights]:
    """A network with random weights of its plugin's choice (hook `random_weights`), the same for one `seed` on every run.

    The global random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        network = initial_network(hooks, variant, settings, seed)
        torch.manual_seed(seed)  # whatever building took from it
        hooks.random_weights(variant, settings, network)
    return network.eval(), LoadedWeights((), seed, "none: random weights", {})


def initial_network(hooks: MatcherHooks, variant: Variant, settings: Settings, seed: int) -> torch.nn.Module:
    """The network as it is built, its initial values from `seed`; torch's random state is what that leaves."""
    torch.manual_seed(seed)
    return hooks.build_network(variant, settings)


@dataclass(frozen=True)
class Checkpoints:
    """The files that were read, by role, and the settings that the main one decides."""

    paths: Mapping[str, Path]
    files: Mapping[str, Checkpoint]
    decided: Mapping[str, object]

    @property
    def main(self) -> Checkpoint:
        """The main file."""
        return self.files[PRIMARY]


def read_weights(
    hooks: MatcherHooks, variant: Variant, files: Mapping[str, Path], *, complete: bool = True
) -> Checkpoints:
    """Read `files` (role to path; "" is the main file), completed by files that are at hand unless `complete` is False.

    Raises `WeightsError`.
    """
    spec = hooks.matcher
    _check_roles(spec, variant, files)
    paths = find_weights(spec, variant, files) if complete else {role: files[role] for role in sorted(files)}
    checkpoints = {PRIMARY if role == "" else role: read_checkpoint(path) for role, path in paths.items()}
    main = checkpoints[PRIMARY]
    try:
        decided = hooks.settings_from_weights(variant, list(main.tensors))
    except WeightsError as error:
        raise WeightsError(f"{main.path} into {spec.id}:{variant.name}: {error.message}", hint=error.hint) from error
    return Checkpoints(paths, checkpoints, decided)


def load_weights(
    hooks: MatcherHooks,
    plugins: Plugins,
    variant: Variant,
    settings: Settings,
    read: Checkpoints,
    allow_missing: tuple[str, ...],
) -> tuple[torch.nn.Module, LoadedWeights]:
    """The network with the weights that were read.

    Raises `WeightsError` listing what is missing, unexpected or misshapen, and naming the matcher that fits better.
    """
    spec, main, paths, checkpoints = hooks.matcher, read.main, read.paths, read.files
    network = hooks.build_network(variant, settings)
    rules = hooks.weight_rules(variant)
    try:
        remapped = apply_rules(checkpoints, rules)
        report = account(remapped, network_state(network), allow_missing)
        _require_second_files(spec, variant, report)
        load_into(network, remapped, report)
    except WeightsError as error:
        hint = _hint(plugins, spec, variant, main, error)
        raise WeightsError(f"{main.path} into {spec.id}:{variant.name}: {error.message}", hint=hint) from error
    sources = tuple(
        SourceFile(role=role or "main", filename=path.name, sha256=checkpoint.sha256, size=checkpoint.size_bytes)
        for (role, path), checkpoint in zip(paths.items(), checkpoints.values(), strict=True)
    )
    return network.eval(), LoadedWeights(sources, None, _licence(spec, variant), report.to_dict())


def _require_second_files(spec: MatcherSpec, variant: Variant, report: WeightReport) -> None:
    """Raise `WeightsError` that names the second file, where all that is wrong is that it was not given."""
    missing = report.of_parameters("missing")
    wrong = report.of_keys("unexpected") or report.of_parameters("misshapen")
    absent = {role: re.compile(pattern) for role, pattern in report.absent_sources}
    roles = [next((role for role, p in absent.items() if p.fullmatch(entry.name)), "") for entry in missing]
    if not roles or wrong or "" in roles:
        return
    files = {file.role: file for file in variant.weights}
    options = " and ".join(
        f"--weights-{role} FILE ({files[role].filename if role in files else role})"
        + (f" or --weights-{role} timm (downloads {files[role].timm})" if role in files and files[role].timm else "")
        for role in dict.fromkeys(roles)
    )
    raise WeightsError(
        f"the file holds no {' and no '.join(dict.fromkeys(roles))} ({len(missing)} tensors), and none is at hand",
        hint=f"add {options}, or download all with `matchrt fetch {spec.id}:{variant.name}`",
    )


def _hint(plugins: Plugins, spec: MatcherSpec, variant: Variant, main: Checkpoint, error: MatchrtError) -> str | None:
    """Another matcher that the file fits better, or what the account itself advises."""
    shapes = {name: tuple(tensor.shape) for name, tensor in main.tensors.items()}
    better = better_fit(fit(shapes, candidates(plugins, list(shapes))), spec.id, variant.name)
    if better:
        return f"{better} Try `matchrt inspect {main.path}`."
    return error.hint or f"`matchrt inspect {main.path}` shows what the file holds"


def _check_roles(spec: MatcherSpec, variant: Variant, files: Mapping[str, Path]) -> None:
    known = {w.role for w in variant.weights} | {""}
    unknown = sorted(set(files) - known)
    if unknown:
        names = ", ".join(f"--weights-{r}" for r in sorted(known) if r) or "only --weights"
        raise UsageError(f"{spec.id}:{variant.name} takes no --weights-{unknown[0]}", hint=f"it takes: {names}")


def _licence(spec: MatcherSpec, variant: Variant) -> str:
    licences = dict.fromkeys(w.licence for w in variant.weights)
    return "; ".join(licences) or spec.licence
