"""`matchrt.load`: open a bundle and make a matcher of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matchrt.bundle import read_bundle
from matchrt.errors import BundleError, UsageError
from matchrt.plugins import MatcherHooks, Plugins, get_plugins
from matchrt.progress import Progress
from matchrt.runtime.matcher import Matcher


def load(
    bundle: str | os.PathLike[str],
    *,
    backend: str = "onnxruntime",
    precision: str = "fp32",
    provider: str | None = None,
    threads: int = 0,
    trust: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    settings: Mapping[str, object] | None = None,
    progress: Progress | None = None,
    plugins: Plugins | None = None,
    **more_settings: object,
) -> Matcher:
    """A matcher from a bundle's folder, or from a name ("superpoint-lightglue:mini") whose weights are at hand.

    A name is converted once and kept in the user's cache (needs the extra `[convert]` that first time).
    Backends that build engines take them from the cache, and build those that are not there with the bundle's own shapes; `trust`
    lists sha256s of engines to load although this user's cache did not write them. `options` go to the backend.
    Match settings are given as keywords (`threshold=0.2`) or as a mapping.
    Raises `BundleError`, `UsageError`, `EnvironmentLackError`, `BackendError`.
    """
    plugins = plugins or get_plugins()
    folder = Path(bundle)
    if not folder.exists():
        folder = _from_name(os.fspath(bundle), plugins)
    opened = read_bundle(folder)
    identity = opened.manifest.matcher
    hooks = MatcherHooks(plugins, plugins.matcher(identity.id))
    chosen = {**(options or {}), "threads": threads, "trust": tuple(trust)}
    if provider:
        chosen["provider"] = provider
    every = {**(settings or {}), **more_settings}
    return Matcher(opened, hooks, _backend(plugins, backend), precision, chosen, every, progress)


def _backend(plugins: Plugins, name: str) -> Any:
    if name not in plugins.backends:
        raise UsageError(f"no backend is called {name!r}", hint=f"known: {', '.join(plugins.backends)}")
    return plugins.backends[name]


def _from_name(name: str, plugins: Plugins) -> Path:
    matcher_id, _, variant = name.partition(":")
    if matcher_id not in plugins.matchers:
        raise BundleError(
            f"no bundle at {name}: it does not exist, and no matcher is called that",
            hint="make one with `matchrt convert`, or see `matchrt models`",
        )
    from matchrt.export.cached import bundle_for_name

    return bundle_for_name(plugins, matcher_id, variant or None)
