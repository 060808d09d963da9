"""Engines: what a backend makes of a bundle's networks, kept in a cache that only this user writes."""

from __future__ import annotations

from matchrt.engines.cache import EngineCache
from matchrt.engines.spec import EngineSpec
from matchrt.engines.trust import CorruptEngineError, UntrustedEngineError

__all__ = ["CorruptEngineError", "EngineCache", "EngineSpec", "UntrustedEngineError"]
