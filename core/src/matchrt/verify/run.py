"""Run a comparison: both sides on every pair, on equal inputs and each its own way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from matchrt.bundle import Bundle, read_bundle
from matchrt.errors import UsageError
from matchrt.export.compare import TensorDifference, compare_tensors
from matchrt.files.pairs import read_pairs
from matchrt.images.read import read_image
from matchrt.matches import Matches
from matchrt.model import Parity, Settings
from matchrt.plugins import MatcherHooks, Plugins
from matchrt.progress import Progress, Silent, stage
from matchrt.runtime.matcher import settings_of
from matchrt.samples import SamplePair
from matchrt.verify.bounds import Bounds, bounds_for, match_failures, tensor_failure
from matchrt.verify.figures import MatchFigures, finite, match_figures, total_figures
from matchrt.verify.location import Location
from matchrt.verify.rounding import with_rounding
from matchrt.verify.subjects import How, Subject, Tensors, opened


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """What to compare. `reference` is how the reference runs; `against` its bundle if it is another one.

    `emulate`: the engine is what `engine.backend` would compute in float16, emulated on this CPU. `locate`: say where the difference
    enters; None does so where the comparison falls short.
    """

    bundle: Path
    engine: How = field(default_factory=How)
    reference: How = field(default_factory=lambda: How(backend="torch"))
    against: Path | None = None
    pairs: Path | None = None
    tolerance_px: float | None = None
    settings: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    locate: bool | None = None
    emulate: bool = False


@dataclass(frozen=True, kw_only=True)
class PairResult:
    """One pair: `equal` are the differences of each step's tensors on equal inputs, `own` those of each side's own way.

    `rounding`: the relative errors of `equal` that rounding to half makes by itself, where known (see `matchrt.verify.rounding`).
    """

    pair: SamplePair
    figures: MatchFigures
    equal: tuple[TensorDifference, ...]
    own: tuple[TensorDifference, ...]
    reference: Matches
    other: Matches
    rounding: tuple[float, ...] = ()

    def judged(self) -> list[tuple[TensorDifference, float]]:
        """`equal`, each with what rounding does by itself, 0 where that is not known."""
        return list(zip(self.equal, self.rounding or (0.0,) * len(self.equal), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        tensors = {"equal_inputs": self.equal, "own_way": self.own}
        found = {n: finite([d.to_dict() for d in ds]) for n, ds in tensors.items()}
        if self.rounding:
            for difference, rounding in zip(found["equal_inputs"], self.rounding, strict=True):
                difference["rounding"] = rounding
        return {**self.figures.to_dict(), "tensors": found}


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What a comparison found. `failures`: one line for each figure beyond its bound."""

    bundle: Bundle
    reference: Mapping[str, Any]
    engine: Mapping[str, Any]
    bounds: Bounds
    pairs: tuple[PairResult, ...]
    total: MatchFigures
    failures: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    location: Location | None = None

    @property
    def passed(self) -> bool:
        """Whether every figure is within its bound."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        manifest = self.bundle.manifest
        return {
            "passed": self.passed,
            "bundle": str(self.bundle.path),
            "bundle_sha256": self.bundle.sha256,
            "matcher": f"{manifest.matcher.id}:{manifest.matcher.variant}",
            "weights": [s.model_dump() for s in manifest.weights.sources],
            "random_weights": manifest.random_weights,
            "reference": dict(self.reference),
            "engine": dict(self.engine),
            "bounds": asdict(self.bounds),
            "pairs": [p.to_dict() for p in self.pairs],
            "total": self.total.to_dict(),
            "failures": list(self.failures),
            "location": self.location.to_dict() if self.location else None,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 2),
        }


def run_verify(request: VerifyRequest, plugins: Plugins, progress: Progress | None = None) -> VerifyResult:
    """Compare. Raises `UsageError`, `BundleError`, `EnvironmentLackError`, and what the two sides raise; falling short raises nothing."""
    progress, begin = progress or Silent(), time.perf_counter()
    bundle = read_bundle(request.bundle)
    against = bundle if request.against is None else read_bundle(request.against)
    _require_comparable(bundle, against)
    identity = bundle.manifest.matcher
    hooks = MatcherHooks(plugins, plugins.matcher(identity.id))
    parity = hooks.parity(hooks.matcher.variant(identity.variant))
    bounds = bounds_for(parity, request.engine.precision, request.tolerance_px, bundle.manifest.random_weights)
    settings = settings_of(hooks, bundle, request.settings)
    pairs = read_pairs(request.pairs, parity.pairs)
    with (
        opened_engine(request, bundle, hooks, progress) as engine,
        opened(against, request.reference, plugins, progress) as reference,
    ):
        compared = Compared(hooks, bundle, settings, parity, bounds, reference, engine, progress)
        results, rounded = with_rounding(compared, compared.all(pairs), request)
        described = reference.describe(), engine.describe()
    total = total_figures([r.figures for r in results], bounds.radius)
    failures = _failures(results, total, bounds)
    location = None
    if request.locate or (failures and request.locate is not False):
        from matchrt.verify.locate import locate

        location = locate(request, bundle, against, hooks, results, bounds, progress)
    return VerifyResult(
        bundle=bundle,
        reference=described[0],
        engine={
            **described[1],
            **({"emulated": True, "precision": request.engine.precision} if request.emulate else {}),
        },
        bounds=bounds,
        pairs=tuple(results),
        total=total,
        failures=failures,
        notes=(*_notes(bundle, results, request), *rounded),
        seconds=time.perf_counter() - begin,
        location=location,
    )


def opened_engine(request: VerifyRequest, bundle: Bundle, hooks: MatcherHooks, progress: Progress) -> Any:
    """The engine's side, as a context manager."""
    if request.emulate:
        from matchrt.verify.emulated import opened_emulated

        return opened_emulated(bundle, hooks, request.engine, progress)
    return opened(bundle, request.engine, hooks.plugins, progress)


@dataclass
class Compared:
    """Both sides, and how they are judged."""

    hooks: MatcherHooks
    bundle: Bundle
    settings: Settings
    parity: Parity
    bounds: Bounds
    reference: Subject
    engine: Subject
    progress: Progress

    def all(self, pairs: Sequence[SamplePair]) -> list[PairResult]:
        """Every pair, in order."""
        results = []
        with stage(self.progress, "compare", len(pairs)):
            for pair in pairs:
                self.progress.advance(0, pair.name)
                results.append(self.one(pair))
                self.progress.advance()
        return results

    def one(self, pair: SamplePair) -> PairResult:
        """The reference's way, the engine on the reference's tensors, and the engine's own way."""
        manifest = self.bundle.manifest
        images = read_image(pair.image0), read_image(pair.image1)
        prepared, geometry = self.hooks.preprocess(images, self.settings)
        reference: Tensors = dict(prepared)
        equal: list[TensorDifference] = []
        for step in manifest.steps:
            inputs = {n: reference[s] for n, s in step.inputs.items()}
            expected = self.reference.run(step.network, inputs)
            equal += self.differences(step.network, expected, self.engine.run(step.network, inputs))
            reference.update({t: expected[n] for n, t in step.outputs.items()})
        own = self.engine.steps(dict(prepared))
        differences: list[TensorDifference] = []
        for step in manifest.steps:
            sides = ({n: space[t] for n, t in step.outputs.items()} for space in (reference, own))
            differences += self.differences(step.network, *sides)
        matches = [self.hooks.postprocess(t, geometry, self.settings) for t in (reference, own)]
        matches = [replace(m, images=images) for m in matches]
        figures = match_figures(pair.name, matches[0], matches[1], self.bounds.radius, pair.homography)
        return PairResult(
            pair=pair,
            figures=figures,
            equal=tuple(equal),
            own=tuple(differences),
            reference=matches[0],
            other=matches[1],
        )

    def differences(self, network: str, reference: Tensors, other: Tensors) -> list[TensorDifference]:
        """Of the outputs that the steps use."""
        return compare_tensors(self.hooks.matcher.network(network), reference, other, self.parity)


def _require_comparable(bundle: Bundle, against: Bundle) -> None:
    """Raise `UsageError` unless both are of one matcher and take the same tensors."""
    a, b = bundle.manifest, against.manifest
    if (a.matcher.id, a.matcher.variant) != (b.matcher.id, b.matcher.variant):
        names = [f"{m.matcher.id}:{m.matcher.variant}" for m in (a, b)]
        raise UsageError(f"{bundle.path} is {names[0]}, {against.path} is {names[1]}: they cannot be compared")
    differing = [n for n in a.settings if a.settings[n] != b.settings.get(n)]
    if differing:
        values = ", ".join(f"{n} {a.settings[n]} against {b.settings.get(n)}" for n in differing)
        raise UsageError(f"{bundle.path} and {against.path} were converted with different settings: {values}")


def _failures(results: Sequence[PairResult], total: MatchFigures, bounds: Bounds) -> tuple[str, ...]:
    lines = []
    if bounds.matches:
        for result in results:
            lines += [f"pair {result.pair.name}: {line}" for line in match_failures(result.figures, bounds)]
        if not lines and len(results) > 1:
            lines += [f"all pairs: {line}" for line in match_failures(total, bounds)]
    if bounds.tensors:
        worst: dict[str, str] = {}
        for result in results:
            for d, rounding in result.judged():
                if (line := tensor_failure(d, bounds, rounding)) is not None:
                    worst.setdefault(f"{d.network}.{d.tensor}", f"pair {result.pair.name}: {line}")
        lines += worst.values()
    return tuple(lines)


def _notes(bundle: Bundle, results: Sequence[PairResult], request: VerifyRequest) -> tuple[str, ...]:
    notes = []
    if bundle.manifest.random_weights:
        notes.append("RANDOM WEIGHTS: the matches mean nothing; this is judged by the tensors on equal inputs alone")
    elif not any(r.figures.reference or r.figures.other for r in results):
        notes.append("no pair has a match on either side: only the tensors were compared")
    if request.emulate:
        notes.append("float16 was emulated on this CPU: every half tensor rounded, products accumulated in float32")
    seen = dict.fromkeys(n for r in results for m in (r.reference, r.other) for n in m.notes)
    return (*notes, *seen)
