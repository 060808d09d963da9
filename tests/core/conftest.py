"""What several rooms share: one small converted bundle."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fixed_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """superpoint-lightglue:mini with random weights, 96x128, 64 keypoints; batch axes "images" and "pairs" are dynamic."""
    import numpy as np

    from matchrt.export.convert import ConvertRequest, run_convert
    from matchrt.plugins import get_plugins

    image = np.random.default_rng(0).integers(0, 255, (96, 128), np.uint8)
    request = ConvertRequest(
        matcher="superpoint-lightglue",
        variant="mini",
        output=tmp_path_factory.mktemp("bundle") / "mini",
        random_seed=0,
        settings={"size": "96x128", "keypoints": 64},
        check_pairs=[("noise", image, image)],
    )
    return run_convert(request, get_plugins()).bundle
