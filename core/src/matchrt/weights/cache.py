"""The user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`MATCHRT_CACHE`, or matchrt's folder in the user's cache. Created with access for the user alone."""
    base = os.environ.get("MATCHRT_CACHE")
    root = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matchrt"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return root


def weights_folder() -> Path:
    """Where fetched weights lie."""
    return cache_folder() / "weights"
