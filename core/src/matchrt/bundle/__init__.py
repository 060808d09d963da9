"""The converted artefact: a folder with `bundle.json` and ONNX files, checked when written and when read."""

from __future__ import annotations

from matchrt.bundle.manifest import SCHEMA_VERSION, BundleManifest
from matchrt.bundle.reader import Bundle, read_bundle

__all__ = ["SCHEMA_VERSION", "Bundle", "BundleManifest", "read_bundle"]
