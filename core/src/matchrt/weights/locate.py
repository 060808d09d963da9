"""Find the weights files of a variant: given by the user, shipped with a package, or fetched before."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files as package_files
from pathlib import Path

from matchrt.errors import UsageError, WeightsError
from matchrt.model import MatcherSpec, Variant, WeightsFile
from matchrt.weights.fetch import cache_folder
from matchrt.weights.timm_source import WORD, fetch_with_timm, timm_path


def find_weights(spec: MatcherSpec, variant: Variant, given: Mapping[str, Path]) -> dict[str, Path]:
    """Role to path for each file that is at hand; `given` wins. Raises `UsageError` where the main file is not at hand.

    The word `timm` in place of a file stands for the copy that the timm library gets, which is downloaded if need be.
    """
    given = {role: _from_timm(spec, variant, role, path) for role, path in given.items()}
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


def _from_timm(spec: MatcherSpec, variant: Variant, role: str, path: Path) -> Path:
    """`path`, or the copy from timm where it is the word and no file is called so."""
    if str(path) != WORD or path.exists():
        return path
    file = next((f for f in variant.weights if f.role == role and f.timm), None)
    if file is None:
        option = f"--weights-{role}" if role else "--weights"
        raise UsageError(f"{option} timm: timm publishes no such file of {spec.id}:{variant.name}", hint="give a file")
    return fetch_with_timm(spec, file).path


def shipped_or_fetched(spec: MatcherSpec, file: WeightsFile) -> Path | None:
    """Where `file` lies, if its package ships it or it was fetched."""
    if file.package:
        try:
            place = Path(str(package_files(file.package) / file.filename))
        except ModuleNotFoundError:
            return None
        return place if place.is_file() else None
    places = [fetched_path(spec, file), *([timm_path(spec, file)] if file.timm else [])]
    return next((place for place in places if place.is_file()), None)


def fetched_path(spec: MatcherSpec, file: WeightsFile) -> Path:
    """Where `matchrt fetch` puts `file`."""
    return cache_folder() / spec.id / file.filename
