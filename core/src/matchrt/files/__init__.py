"""Writing matches: npz, JSON, hloc HDF5 and COLMAP text, each file whole or not at all."""

from __future__ import annotations

from typing import Any

_HOME = {
    "atomic": ("atomic_file", "atomic_folder", "atomic_write_bytes", "atomic_write_text"),
    "colmap": ("save_colmap_features", "save_colmap_matches"),
    "hloc": ("ImageFeatures", "save_hloc_features", "save_hloc_matches"),
    "plain": ("load_json", "load_npz", "save_json", "save_npz"),
    "writers": ("BUILT_IN", "Writer", "write_matches"),
}

__all__ = [name for names in _HOME.values() for name in names]


def __getattr__(name: str) -> Any:
    """Import at first use: listing the formats must not load numpy."""
    import importlib

    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"matchrt.files.{module}"), name)
    raise AttributeError(f"module 'matchrt.files' has no attribute {name!r}")
