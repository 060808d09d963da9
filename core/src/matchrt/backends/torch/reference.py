"""The PyTorch network that a bundle was made from, rebuilt from the same weights; anything else is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from matchrt.bundle.manifest import BundleManifest, SourceFile
from matchrt.errors import WeightsError
from matchrt.export.weights import initial_network, load_weights, random_weights, read_weights
from matchrt.model import Settings, Variant
from matchrt.plugins import MatcherHooks
from matchrt.settings import resolve
from matchrt.weights.account import network_state
from matchrt.weights.hashing import file_sha256
from matchrt.weights.locate import fetched_path, shipped_or_fetched


def reference_network(
    manifest: BundleManifest, hooks: MatcherHooks, checkpoint: Mapping[str, Path], *, foreign: bool = False
) -> torch.nn.Module:
    """The network of `manifest`'s matcher with its weights, in eval mode, on the CPU, in float32.

    `checkpoint` maps roles ("" is the main file) to files; others are looked for among shipped and fetched weights. Every file must
    have the sha256 that the bundle recorded, unless `foreign`; random weights are made again from the recorded seed.
    Raises `WeightsError` that names the file to give.
    """
    variant = hooks.matcher.variant(manifest.matcher.variant)
    settings = baked_settings(manifest, hooks)
    if manifest.weights.random_seed is not None:
        if checkpoint:
            raise WeightsError(
                "the bundle has random weights, so no checkpoint belongs to it",
                hint=f"leave the checkpoint out: they are made again from seed {manifest.weights.random_seed}",
            )
        return random_weights(hooks, variant, settings, manifest.weights.random_seed)[0]
    paths = find_sources(manifest, hooks, variant, checkpoint, foreign)
    read = read_weights(hooks, variant, paths, complete=False)
    allowed = manifest.weights.allow_missing
    network, loaded = load_weights(hooks, hooks.plugins, variant, settings, read, allowed)
    if loaded.counts().get("allowed_missing"):
        _require_same_start(hooks, variant, settings, loaded.report)
    return network


def baked_settings(manifest: BundleManifest, hooks: MatcherHooks) -> Settings:
    """All settings as conversion resolved them."""
    known = {s.name for s in hooks.matcher.settings}
    recorded = {n: v for n, v in {**manifest.settings, **manifest.match_settings}.items() if n in known}
    return resolve(hooks.matcher.settings, ("bundle", recorded), environment={})


def find_sources(
    manifest: BundleManifest, hooks: MatcherHooks, variant: Variant, given: Mapping[str, Path], foreign: bool
) -> dict[str, Path]:
    """Role to path of each file that `manifest` names: the one given, else a shipped or fetched one of the same sha256."""
    sources = {"" if s.role == "main" else s.role: s for s in manifest.weights.sources}
    for role, path in given.items():
        if role not in sources:
            raise WeightsError(
                f"the bundle has no weights of role {role or 'main'!r}",
                hint=f"it was made from: {', '.join(s.role for s in sources.values())}",
            )
        if not path.is_file():
            raise WeightsError(f"no checkpoint at {path}: it is not there", hint=_give(role, sources[role]))
        found = file_sha256(path)
        if found != sources[role].sha256 and not foreign:
            raise WeightsError(
                f"{path} is not what the bundle was made from: its sha256 is {found}, not {sources[role].sha256}",
                hint=_give(role, sources[role]),
            )
    paths = dict(given)
    for role, source in sources.items():
        if role not in paths:
            paths[role] = _at_hand(hooks, variant, role, source)
    return paths


def _at_hand(hooks: MatcherHooks, variant: Variant, role: str, source: SourceFile) -> Path:
    """A shipped or fetched file with the right sha256, else a file of the recorded name in the place for fetched ones."""
    candidates = [shipped_or_fetched(hooks.matcher, f) for f in variant.weights if f.role == role]
    candidates += [fetched_path(hooks.matcher, f).parent / source.filename for f in variant.weights]
    for path in dict.fromkeys(candidates):
        if path is not None and path.is_file() and file_sha256(path) == source.sha256:
            return path
    raise WeightsError(
        f"the PyTorch network needs the bundle's {source.role} weights, and they are not at hand: "
        f"{source.filename}, {source.size} bytes, sha256 {source.sha256}",
        hint=_give(role, source),
    )


def _give(role: str, source: SourceFile) -> str:
    return (
        f"give --checkpoint {role + '=' if role else ''}FILE with that {source.filename}, the file that was converted"
    )


def _require_same_start(
    hooks: MatcherHooks, variant: Variant, settings: Settings, report: Mapping[str, object]
) -> None:
    """Raise `WeightsError` where a parameter that the checkpoint lacks starts at random, so that the bundle's value is not known."""
    with torch.random.fork_rng(devices=[]):
        start, again = (network_state(initial_network(hooks, variant, settings, seed)) for seed in (0, 1))
    random = [n for n in _allowed_names(report) if not torch.equal(start[n], again[n])]
    if random:
        raise WeightsError(
            f"the bundle was converted without {len(random)} tensors ({', '.join(random[:3])}…), which started at random: "
            "PyTorch cannot make the same network again",
            hint="compare with another bundle instead: --against BUNDLE",
        )


def _allowed_names(report: Mapping[str, object]) -> list[str]:
    entries = report.get("parameters", ())
    assert isinstance(entries, (list, tuple))
    return [e["name"] for e in entries if e["kind"] == "allowed_missing"]
