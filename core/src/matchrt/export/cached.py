"""Bundles made on the fly for `matchrt.load("matcher:variant")`, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from matchrt.bundle import read_bundle
from matchrt.errors import BundleError, EnvironmentLackError
from matchrt.plugins import Plugins
from matchrt.settings import format_value, resolve
from matchrt.weights.fetch import cache_folder
from matchrt.weights.hashing import file_sha256
from matchrt.weights.locate import find_weights


def bundle_for_name(plugins: Plugins, matcher_id: str, variant_name: str | None) -> Path:
    """The cached bundle of a matcher's variant, converted now if it is not there.

    The cache key covers matcher, variant, weights' hashes, settings that the environment changes (`MATCHRT_SET_NAME`) and matchrt's
    version. Raises as `convert` does, and `EnvironmentLackError` where conversion is needed and torch is not installed.
    """
    from matchrt import __version__

    spec = plugins.matcher(matcher_id)
    variant = spec.variant(variant_name)
    paths = find_weights(spec, variant, {})
    chosen = resolve(spec.settings, ("variant", variant.settings))
    baked = {s.name: format_value(chosen[s.name]) for s in spec.settings if s.stage == "convert"}
    key = json.dumps([spec.id, variant.name, {r: file_sha256(p) for r, p in paths.items()}, baked, __version__])
    folder = cache_folder("bundles") / f"{spec.id}-{variant.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if folder.exists():
        try:
            return read_bundle(folder).path
        except BundleError:
            pass  # replaced below: the cache may be rebuilt at any time
    try:
        from matchrt.export.convert import ConvertRequest, run_convert
    except ModuleNotFoundError as error:
        raise EnvironmentLackError(
            f"{matcher_id}:{variant.name} must be converted once, which needs {error.name}",
            hint="install the extra: pip install 'matchrt[convert]'",
        ) from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    request = ConvertRequest(
        matcher=spec.id, variant=variant.name, weights=paths, output=folder, replace=folder.exists()
    )
    return run_convert(request, plugins).bundle
