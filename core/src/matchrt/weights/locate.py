"""Find the weights files of a variant: given by the user, shipped with a package, or fetched before."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files as package_files
from pathlib import Path

from matchrt.errors import UsageError, WeightsError
from matchrt.model import MatcherSpec, Variant, WeightsFile
from matchrt.weights.fetch import cache_folder


def find_weights(spec: MatcherSpec, variant: Variant, given: Mapping[str, Path]) -> dict[str, Path]:
    """Role to path for each file that is at hand; `given` wins. Raises `UsageError` where the main file is not at hand."""
    for role, path in given.items():
        if not path.exists():
            option = f"--weights-{role}" if role else "--weights"
            raise WeightsError(f"no weights at {path}: it does not exist", hint=f"give an existing file to {option}")
    paths = dict(given)
    if given and "" not in given:
        raise UsageError(f"{spec.id}:{variant.name}: the main weights are missing", hint="add --weights FILE")
    for file in variant.weights:
        if file.role not in paths and (place := shipped_or_fetched(spec, file)):
            paths[file.role] = place
    if "" not in paths:
        name = f"{spec.id}:{variant.name}"
        raise UsageError(
            f"{name} needs weights, and none are at hand",
            hint=f"give --weights FILE, or `matchrt fetch {name}`, or --random-weights SEED for tests",
        )
    return {role: paths[role] for role in sorted(paths)}


def shipped_or_fetched(spec: MatcherSpec, file: WeightsFile) -> Path | None:
    """Where `file` lies, if its package ships it or it was fetched."""
    if file.package:
        try:
            place = Path(str(package_files(file.package) / file.filename))
        except ModuleNotFoundError:
            return None
        return place if place.is_file() else None
    place = fetched_path(spec, file)
    return place if place.is_file() else None


def fetched_path(spec: MatcherSpec, file: WeightsFile) -> Path:
    """Where `matchrt fetch` puts `file`."""
    return cache_folder() / spec.id / file.filename
