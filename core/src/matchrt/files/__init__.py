"""Writing matches: npz, JSON, hloc HDF5 and COLMAP text, each file whole or not at all."""

from __future__ import annotations

from matchrt.files.atomic import atomic_file, atomic_folder, atomic_write_bytes, atomic_write_text
from matchrt.files.colmap import save_colmap_features, save_colmap_matches
from matchrt.files.hloc import ImageFeatures, save_hloc_features, save_hloc_matches
from matchrt.files.plain import load_json, load_npz, save_json, save_npz
from matchrt.files.writers import BUILT_IN, Writer, write_matches

__all__ = [
    "BUILT_IN",
    "ImageFeatures",
    "Writer",
    "atomic_file",
    "atomic_folder",
    "atomic_write_bytes",
    "atomic_write_text",
    "load_json",
    "load_npz",
    "save_colmap_features",
    "save_colmap_matches",
    "save_hloc_features",
    "save_hloc_matches",
    "save_json",
    "save_npz",
    "write_matches",
]
