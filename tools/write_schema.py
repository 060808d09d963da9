"""Write docs/bundle.schema.json from the manifest's model."""

from __future__ import annotations

import json
from pathlib import Path

from matchrt.bundle import BundleManifest

TARGET = Path(__file__).parents[1] / "docs" / "bundle.schema.json"

if __name__ == "__main__":
    TARGET.write_text(json.dumps(BundleManifest.model_json_schema(), indent=2) + "\n", "utf-8")
    print(TARGET.name)
