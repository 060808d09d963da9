"""Discovery of plugins and dispatch of hooks. Nothing is imported before a plugin is needed."""

from __future__ import annotations

from functools import lru_cache

from matchrt.plugins.dispatch import MatcherHooks
from matchrt.plugins.manager import DisabledPlugin, FailedPlugin, LoadedPlugin, Plugins

__all__ = ["DisabledPlugin", "FailedPlugin", "LoadedPlugin", "MatcherHooks", "Plugins", "get_plugins"]


@lru_cache(maxsize=1)
def get_plugins() -> Plugins:
    """The plugins of this process, discovered at the first call (`get_plugins.cache_clear()` forgets them)."""
    return Plugins.discover()
