"""Precision `mixed`: which blocks of a bundle's networks must stay in float32 so that the matches stay what they are.

The search (`matchrt.graph.mixed`) goes network by network, in the order they run; those before are as chosen, those after in float32.
A trial is measured on image pairs against the bundle's own float32 graphs: by the engine itself where the backend runs here, else by
emulating float16 on this CPU. What was found is kept in the user's cache, and asked again only if something that decides it changed.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from matchrt.backends import Engine
from matchrt.bundle import Bundle, BundleManifest
from matchrt.engines.build import BuildRequest, Kept, build_engines
from matchrt.engines.cache import EngineCache
from matchrt.engines.prepared import code_fingerprint, prepare_network
from matchrt.errors import VerificationError
from matchrt.export.compare import relative_error
from matchrt.files.atomic import atomic_write_text
from matchrt.files.pairs import read_pairs
from matchrt.graph.emulate import emulate_half
from matchrt.graph.mixed import MixedResult, search_mixed
from matchrt.images.read import read_image
from matchrt.matches import Matches
from matchrt.model import PrecisionRule, Settings
from matchrt.plugins import MatcherHooks
from matchrt.progress import Progress, Silent, stage
from matchrt.runtime.matcher import settings_of
from matchrt.runtime.steps import run_network
from matchrt.samples import SamplePair
from matchrt.verify.bounds import Bounds, bounds_for
from matchrt.verify.derive import derive_bundle
from matchrt.verify.emulated import emulation_target
from matchrt.verify.figures import MatchFigures, finite, match_figures
from matchrt.verify.subjects import How, Subject, Tensors, opened
from matchrt.weights.fetch import cache_folder

EMULATED_BUDGET, ENGINE_BUDGET = 24, 8
"""Trials for each network."""


def choose_kept(
    bundle: Bundle,
    hooks: MatcherHooks,
    backend: Any,
    *,
    tolerance_px: float | None = None,
    pairs: Path | None = None,
    engines: bool | None = None,
    request: BuildRequest | None = None,
    progress: Progress | None = None,
) -> dict[str, Kept]:
    """What stays in float32 in each network: the cheapest set found with which every figure is within the bounds of float16.

    `engines`: measure built engines rather than emulate; None does so where the backend runs here on a GPU. `request` holds the shapes
    and options to build them with. Raises `VerificationError` where not even all blocks in float32 pass.
    """
    progress = progress or Silent()
    parity = hooks.parity(hooks.matcher.variant(bundle.manifest.matcher.variant))
    bounds = bounds_for(parity, "mixed", tolerance_px, bundle.manifest.random_weights)
    chosen = read_pairs(pairs, parity.pairs)
    if engines is None:
        engines = backend.name != "onnxruntime" and bool(backend.info().can_run)
    request = request or BuildRequest(precision="mixed")
    identity = _identity(bundle, hooks, backend, bounds, chosen, engines, request)
    remembered = cache_folder("mixed") / f"{identity}.json"
    if remembered.is_file():
        return _read(remembered)
    search = _Chain(bundle, hooks, backend, bounds, chosen, engines, request, progress)
    found = search.run()
    atomic_write_text(
        remembered,
        json.dumps({n: {"rules": [asdict(r) for r in k.rules], "record": dict(k.record)} for n, k in found.items()}),
    )
    return found


def _identity(
    bundle: Bundle,
    hooks: MatcherHooks,
    backend: Any,
    bounds: Bounds,
    pairs: Sequence[SamplePair],
    engines: bool,
    request: BuildRequest,
) -> str:
    target = backend.target("fp16")
    built = [dict(request.options), asdict(backend.identity(request.targets))] if engines else []
    images = [hashlib.sha256(p.read_bytes()).hexdigest() for s in pairs for p in (s.image0, s.image1)]
    data = [bundle.sha256, code_fingerprint(hooks), asdict(target), asdict(bounds), images, engines, built]
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, Kept]:
    data = json.loads(path.read_text("utf-8"))
    return {
        name: Kept(
            rules=tuple(
                PrecisionRule(pattern=r["pattern"], reason=r["reason"], op_types=tuple(r["op_types"]))
                for r in k["rules"]
            ),
            record={**k["record"], "remembered": True},
        )
        for name, k in data.items()
    }


@dataclass
class _Reference:
    """One pair in float32: its tensors after all steps, and its matches."""

    prepared: Tensors
    space: Tensors
    geometry: Any
    matches: Matches
    settings: Settings


@dataclass
class _Chain:
    """The networks one after the other."""

    bundle: Bundle
    hooks: MatcherHooks
    backend: Any
    bounds: Bounds
    pairs: Sequence[SamplePair]
    engines: bool
    request: BuildRequest
    progress: Progress

    def run(self) -> dict[str, Kept]:
        """The choice for every network. Raises `VerificationError`."""
        manifest = self.bundle.manifest
        references = self._references()
        emulated: dict[str, onnx.ModelProto] = {}
        kept: dict[str, Kept] = {}
        with stage(self.progress, "search mixed precision", len(manifest.networks)):
            for network in manifest.networks:
                self.progress.advance(0, network.name)
                trials = _Trials(self, network.name, references, emulated, kept)
                result = trials.search()
                if not result.passed:
                    best = min((t.figure for t in result.trials if not math.isnan(t.figure)), default=math.inf)
                    raise VerificationError(
                        f"network {network.name!r}: none of {len(result.trials)} sets of float32 blocks keeps every figure within its "
                        f"bound (at best {best:.3g} times the bound)",
                        hint="build with --precision fp32, or allow more with --tolerance PX",
                    )
                kept[network.name] = Kept(rules=result.rules[trials.given :], record=self._record(result))
                if not self.engines:
                    emulated[network.name] = emulate_half(result.model)
                self.progress.advance(1, network.name)
        return kept

    def _references(self) -> list[_Reference]:
        settings = settings_of(self.hooks, self.bundle, {})
        found = []
        with opened(self.bundle, How(), self.hooks.plugins, self.progress) as subject:
            for pair in self.pairs:
                images = read_image(pair.image0), read_image(pair.image1)
                prepared, geometry = self.hooks.preprocess(images, settings)
                space = subject.steps(dict(prepared))
                matches = self.hooks.postprocess(space, geometry, settings)
                found.append(_Reference(dict(prepared), space, geometry, matches, settings))
        return found

    def _record(self, result: MixedResult) -> dict[str, Any]:
        chosen = min((t for t in result.trials if t.passed), key=lambda t: t.kept)
        return {
            "measured": "built engines" if self.engines else "float16 emulated on a CPU",
            "blocks": list(chosen.blocks),
            "kept_nodes": [asdict(k) for k in result.record.kept],
            "figure": chosen.figure,
            "bounds": asdict(self.bounds),
            "pairs": [p.name for p in self.pairs],
            "trials": [finite(asdict(t)) for t in result.trials],
        }


@dataclass
class _Trials:
    """The search in one network."""

    chain: _Chain
    network: str
    references: Sequence[_Reference]
    emulated: Mapping[str, onnx.ModelProto]
    kept: Mapping[str, Kept]
    given: int = 0
    """How many of the result's rules are the matcher's own."""

    def search(self) -> MixedResult:
        """Prepare the graph in float32, and search."""
        chain = self.chain
        typed = emulation_target(chain.hooks, chain.backend.name)
        own = [r for r in chain.hooks.precision_rules(typed) if r.networks is None or self.network in r.networks]
        self.given = len(own)
        target = replace(typed, precision="fp32")
        with tempfile.TemporaryDirectory(prefix="matchrt-mixed-") as folder:
            prepared = prepare_network(chain.bundle, chain.hooks, self.network, target, {}, Path(folder))
            model = onnx.load(str(prepared.graph))
        budget = ENGINE_BUDGET if chain.engines else EMULATED_BUDGET
        return search_mixed(model, self.measure, 1.0, rules=own, network=self.network, budget=budget)

    def measure(self, half: onnx.ModelProto, rules: tuple[PrecisionRule, ...]) -> float:
        """The worst figure of any pair, as a multiple of its bound."""
        with ExitStack() as stack:
            if self.chain.engines:
                subject: Subject = stack.enter_context(self._engines(rules))
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="matchrt-trial-"))
                models = {**self.emulated, self.network: emulate_half(half)}
                derived = derive_bundle(self.chain.bundle, Path(folder) / "bundle", models)
                subject = stack.enter_context(opened(derived, How(), self.chain.hooks.plugins))
            return max(self._figure(subject, r) for r in self.references)

    @contextmanager
    def _engines(self, rules: tuple[PrecisionRule, ...]) -> Iterator[Subject]:
        """The networks up to this one on built engines; those after it on their graphs in float32."""
        chain, manifest = self.chain, self.chain.bundle.manifest
        names = [n.name for n in manifest.networks]
        kept = {n: self.kept.get(n, Kept()) for n in names}
        kept[self.network] = Kept(rules=rules[self.given :])
        request = replace(chain.request, precision="mixed", kept=kept)
        cache = EngineCache()
        wanted = names[: names.index(self.network) + 1]
        built = build_engines(chain.bundle, chain.hooks, chain.backend, request, cache, chain.progress, only=wanted)
        engines = {
            b.plan.network: chain.backend.load(b.plan.network, cache.read(b.entry.key, ())[1], b.entry.io, {})
            for b in built
        }
        with opened(chain.bundle, How(), chain.hooks.plugins) as rest:
            yield _Mixture(manifest, engines, rest)
        for engine in engines.values():
            engine.close()

    def _figure(self, subject: Subject, reference: _Reference) -> float:
        bounds, hooks = self.chain.bounds, self.chain.hooks
        if not bounds.matches:
            return self._tensors(subject, reference) / bounds.relative
        space = subject.steps(dict(reference.prepared))
        other = hooks.postprocess(space, reference.geometry, reference.settings)
        return match_share(match_figures("", reference.matches, other, bounds.radius), bounds)

    def _tensors(self, subject: Subject, reference: _Reference) -> float:
        """The largest relative error of this network's float outputs on the float32 way's inputs."""
        found = [0.0]
        for step in self.chain.bundle.manifest.steps:
            if step.network == self.network:
                made = subject.run(step.network, {n: reference.space[s] for n, s in step.inputs.items()})
                found += [
                    relative_error(reference.space[t], made[n])
                    for n, t in step.outputs.items()
                    if reference.space[t].dtype.kind == "f"
                ]
        return max(found)


class _Mixture:
    """A subject whose networks run partly on engines, partly on the graphs of `rest`."""

    def __init__(self, manifest: BundleManifest, engines: Mapping[str, Engine], rest: Subject) -> None:
        self._manifest, self._rest = manifest, rest
        self._sessions = {n: e.session() for n, e in engines.items()}

    def describe(self) -> dict[str, Any]:
        """See `Subject`."""
        return self._rest.describe()

    def run(self, network: str, inputs: Tensors) -> Tensors:
        """See `Subject`."""
        if network in self._sessions:
            return run_network(self._manifest, self._sessions, network, inputs)
        return self._rest.run(network, inputs)

    def steps(self, tensors: Tensors) -> Tensors:
        """See `Subject`."""
        space = dict(tensors)
        for step in self._manifest.steps:
            outputs = self.run(step.network, {n: space[s] for n, s in step.inputs.items()})
            space.update({t: outputs[n] for n, t in step.outputs.items()})
        return space

    def close(self) -> None:
        """See `Subject`."""


def match_share(m: MatchFigures, bounds: Bounds) -> float:
    """The worst figure of a pair as a multiple of its bound; at most 1 exactly if `match_failures` finds nothing."""
    shares = [0.0]
    if m.unshared > bounds.spare:
        shares.append(_ratio(1 - m.same, 1 - bounds.same))
    shares.append(_ratio(abs(m.reference - m.other), max(bounds.spare, bounds.count * max(m.reference, m.other))))
    for spread in (m.coordinates, m.warp):
        if spread is not None and spread.count:
            shares += [_ratio(spread.mean, bounds.mean_px), _ratio(1 - spread.within[2], 1 - bounds.within_1px)]
    return max(shares)


def _ratio(value: float, bound: float) -> float:
    return value / bound if bound > 0 else (0.0 if value <= 0 else math.inf)
