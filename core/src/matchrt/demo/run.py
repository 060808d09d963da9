"""Convert a shipped checkpoint, match the shipped pairs with it, and compare with the known homographies."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from matchrt.errors import EnvironmentLackError, UsageError
from matchrt.export.convert import ConvertRequest, ConvertResult, run_convert
from matchrt.geometry.robust import RobustFit, corner_error
from matchrt.matches import Matches
from matchrt.model import MatcherSpec, Variant
from matchrt.plugins import Plugins
from matchrt.progress import Progress, stage
from matchrt.runtime import Matcher, load
from matchrt.samples import SamplePair, sample_pairs
from matchrt.weights.locate import shipped_or_fetched

REPEATS = 3
"""Runs of each pair; the fastest is reported, because the first also warms up."""


@dataclass(frozen=True, kw_only=True)
class DemoPair:
    """One pair's result. `corner_px` is the mean distance of the image corners under the found and the known homography."""

    sample: SamplePair
    matches: Matches
    fit: RobustFit
    corner_px: float | None
    picture: Path
    seconds: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            "pair": self.sample.name,
            "matches": len(self.matches),
            "inliers": int(np.count_nonzero(self.fit.inliers)),
            "corner_px": self.corner_px,
            "homography": None if self.fit.matrix is None else self.fit.matrix.tolist(),
            "known_homography": None if self.sample.homography is None else self.sample.homography.tolist(),
            "picture": str(self.picture),
            "seconds": dict(self.seconds),
        }


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """All of the demonstration."""

    converted: ConvertResult
    pairs: tuple[DemoPair, ...]
    report: Path
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            "report": str(self.report),
            "convert": self.converted.to_dict(),
            "pairs": [p.to_dict() for p in self.pairs],
            "seconds": round(self.seconds, 2),
        }


def shipped_variants(plugins: Plugins) -> list[tuple[MatcherSpec, Variant]]:
    """Variants whose weights come with an installed package."""
    return [
        (spec, variant)
        for spec in plugins.matchers.values()
        for variant in spec.variants
        if variant.weights and all(w.package and shipped_or_fetched(spec, w) for w in variant.weights)
    ]


def run_demo(output: Path, name: str | None, plugins: Plugins, progress: Progress) -> DemoResult:
    """Write a bundle, one picture a pair and `report.html` into `output`, which may exist if an earlier run made it."""
    from matchrt.demo.report import write_report

    begin = time.perf_counter()
    spec, variant = _choose(name, plugins)
    if output.exists() and any(output.iterdir()) and not (output / "bundle" / "bundle.json").is_file():
        raise UsageError(f"{output} exists and is not an earlier demo", hint="choose another folder with -o")
    output.mkdir(parents=True, exist_ok=True)
    bundle = output / "bundle"
    request = ConvertRequest(matcher=spec.id, variant=variant.name, output=bundle, replace=bundle.exists())
    converted = run_convert(request, plugins, progress)
    samples = sample_pairs()
    with load(bundle, plugins=plugins) as matcher, stage(progress, "match", len(samples)):
        pairs = []
        for sample in samples:
            pairs.append(_match(matcher, sample, output))
            progress.advance()
    report = output / "report.html"
    result = DemoResult(converted=converted, pairs=tuple(pairs), report=report, seconds=time.perf_counter() - begin)
    write_report(result)
    return result


def _choose(name: str | None, plugins: Plugins) -> tuple[MatcherSpec, Variant]:
    shipped = shipped_variants(plugins)
    if name is None:
        if not shipped:
            raise EnvironmentLackError("no installed plugin ships weights", hint="pip install matchrt-lightglue")
        return shipped[0]
    matcher_id, _, variant_name = name.partition(":")
    spec = plugins.matcher(matcher_id)
    return spec, spec.variant(variant_name or None)


def _match(matcher: Matcher, sample: SamplePair, output: Path) -> DemoPair:
    runs = [matcher(sample.image0, sample.image1) for _ in range(REPEATS)]
    matches = min(runs, key=lambda m: sum(m.seconds.values()))
    fit = matches.homography()
    corner = None
    if sample.homography is not None:
        corner = corner_error(fit.matrix, sample.homography, matches.size0)
    picture = output / f"{sample.name}.png"
    matches.draw(picture, inliers=fit.inliers)
    return DemoPair(sample=sample, matches=matches, fit=fit, corner_px=corner, picture=picture, seconds=matches.seconds)
