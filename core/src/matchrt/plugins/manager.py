"""Load plugins one by one: a broken one is kept with its cause, and the others work."""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from matchrt import hooks
from matchrt.errors import MatchrtError, PluginError, UsageError
from matchrt.model import MatcherSpec
from matchrt.plugins import discovery
from matchrt.plugins.discovery import Found
from matchrt.plugins.validation import implemented_hooks, problems_of

if TYPE_CHECKING:
    from matchrt.backends import BackendSpec
    from matchrt.files.writers import Writer

T = TypeVar("T")

BUILT_IN = (Found("core", "matchrt.builtin", "matchrt", ""),)


@dataclass(frozen=True)
class LoadedPlugin:
    """A plugin that works."""

    found: Found
    module: ModuleType
    hooks: tuple[str, ...]
    matchers: tuple[MatcherSpec, ...] = ()
    backends: tuple[BackendSpec, ...] = ()
    writers: tuple[Writer, ...] = ()


@dataclass(frozen=True)
class FailedPlugin:
    """A plugin that was refused, with every cause, and the traceback if it raised."""

    found: Found
    causes: tuple[str, ...]
    trace: str = ""


@dataclass(frozen=True)
class DisabledPlugin:
    """A plugin that the environment switched off; it was not imported."""

    found: Found
    reason: str


@dataclass
class Plugins:
    """The plugins of a process: which loaded, which failed and why, and who owns what."""

    loaded: list[LoadedPlugin] = field(default_factory=list)
    failed: list[FailedPlugin] = field(default_factory=list)
    disabled: list[DisabledPlugin] = field(default_factory=list)
    pluggy: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager(hooks.PROJECT))

    @classmethod
    def discover(cls, points: Sequence[Found] | None = None, environment: Mapping[str, str] | None = None) -> Plugins:
        """Find, check and register plugins. Never raises because of a plugin.

        `points` defaults to the installed entry points, `environment` to `os.environ`.
        """
        plugins = cls()
        environment = os.environ if environment is None else environment
        candidates = []
        for found in discovery.find_entry_points() if points is None else points:
            reason = discovery.reason_to_skip(found, environment)
            if reason:
                plugins.disabled.append(DisabledPlugin(found, reason))
            else:
                candidates.append(found)
        refused = discovery.clashes(candidates)
        plugins.failed += [FailedPlugin(found, (reason,)) for found, reason in refused.items()]
        good: list[LoadedPlugin] = []
        for found in (*BUILT_IN, *(c for c in candidates if c not in refused)):
            result = _load(found)
            if isinstance(result, LoadedPlugin):
                good.append(result)
            else:
                plugins.failed.append(result)
        plugins._register(plugins._without_claims(good))
        return plugins

    def _without_claims(self, good: list[LoadedPlugin]) -> list[LoadedPlugin]:
        """Refuse plugins that claim a name another one claims; a name of core's stays core's."""
        causes: dict[str, list[str]] = {}
        kinds: tuple[tuple[str, Callable[[LoadedPlugin], list[str]]], ...] = (
            ("matcher", lambda p: [m.id for m in p.matchers]),
            ("backend", lambda p: [b.name for b in p.backends]),
            ("output format", lambda p: [s for w in p.writers for s in w.suffixes]),
        )
        for kind, names in kinds:
            for plugin in good:
                for name in names(plugin):
                    others = [p for p in good if p is not plugin and name in names(p)]
                    if others and plugin.found not in BUILT_IN:
                        claimants = ", ".join(p.found.distribution for p in others)
                        causes.setdefault(plugin.found.value, []).append(
                            f"{kind} {name!r} is also claimed by {claimants}; "
                            f"uninstall one, or name it in {discovery.BLOCK}"
                        )
        self.failed += [FailedPlugin(p.found, tuple(causes[p.found.value])) for p in good if p.found.value in causes]
        return [p for p in good if p.found.value not in causes]

    def _register(self, good: list[LoadedPlugin]) -> None:
        self.pluggy.add_hookspecs(hooks)
        # pluggy calls the last registered first: owners come last, so that the owner answers first.
        for plugin in sorted(good, key=lambda p: bool(p.matchers)):
            self.pluggy.register(plugin.module, name=plugin.found.name)
        self.loaded = good

    @property
    def matchers(self) -> dict[str, MatcherSpec]:
        """Registered matchers by id, sorted."""
        return dict(sorted((m.id, m) for p in self.loaded for m in p.matchers))

    @property
    def backends(self) -> dict[str, BackendSpec]:
        """Registered backends by name."""
        return {b.name: b for p in self.loaded for b in p.backends}

    @property
    def writers(self) -> dict[str, Writer]:
        """Registered output formats by suffix."""
        return {s: w for p in self.loaded for w in p.writers for s in w.suffixes}

    def owner(self, matcher: MatcherSpec) -> LoadedPlugin:
        """The plugin that registered `matcher`. Raises `PluginError`."""
        for plugin in self.loaded:
            if any(m.id == matcher.id for m in plugin.matchers):
                return plugin
        raise PluginError(f"no loaded plugin owns matcher {matcher.id!r}")

    def matcher(self, matcher_id: str) -> MatcherSpec:
        """The matcher called `matcher_id`. Raises `UsageError` with the nearest name and any failed plugin's cause."""
        matchers = self.matchers
        if matcher_id in matchers:
            return matchers[matcher_id]
        close = difflib.get_close_matches(matcher_id, matchers, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(matchers) or 'none'}"
        if self.failed:
            names = ", ".join(f"{f.found.name} ({f.found.distribution})" for f in self.failed)
            hint += f"; plugins that failed to load: {names} - see `matchrt plugins`"
        raise UsageError(f"no matcher is called {matcher_id!r}", hint=hint)


def _load(found: Found) -> LoadedPlugin | FailedPlugin:
    try:
        module = found.load()
        problems = problems_of(module)
        if problems:
            return FailedPlugin(found, tuple(problems))
        assert isinstance(module, ModuleType)
        return LoadedPlugin(
            found,
            module,
            implemented_hooks(module),
            matchers=_registered(module, "register_matchers", "matchrt.model.MatcherSpec"),
            backends=_registered(module, "register_backends", "matchrt.backends.BackendSpec"),
            writers=_registered(module, "register_writers", "matchrt.files.writers.Writer"),
        )
    except MatchrtError as error:
        return FailedPlugin(found, (error.message,), traceback.format_exc())
    except (Exception, SystemExit) as error:
        cause = f"{type(error).__name__}: {error}".rstrip(": ")
        return FailedPlugin(found, (f"importing {found.value} raised {cause}",), traceback.format_exc())


def _registered(module: ModuleType, hook: str, kind: str) -> tuple[Any, ...]:
    function = getattr(module, hook, None)
    if function is None:
        return ()
    answer = function()
    items = tuple(answer) if isinstance(answer, Iterable) else (answer,)
    for item in items:
        cls = type(item)
        if f"{cls.__module__}.{cls.__qualname__}" != kind:
            raise PluginError(f"{hook}() must return {kind.rpartition('.')[2]} objects, got {item!r}")
    return items
