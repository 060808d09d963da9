"""What several rooms share: one small converted bundle."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fixed_bundle(shared: Callable[[str], AbstractContextManager[Path]]) -> Path:
    """superpoint-lightglue:mini with random weights, 96x128, 64 keypoints; batch axes "images" and "pairs" are dynamic."""
    with shared("fixed_bundle") as folder:
        if (folder / "mini").exists():
            return folder / "mini"
        return _converted(folder / "mini")


def _converted(output: Path) -> Path:
    import numpy as np

    from matchrt.export.convert import ConvertRequest, run_convert
    from matchrt.plugins import get_plugins

    image = np.random.default_rng(0).integers(0, 255, (96, 128), np.uint8)
    request = ConvertRequest(
        matcher="superpoint-lightglue",
        variant="mini",
        output=output,
        random_seed=0,
        settings={"size": "96x128", "keypoints": 64},
        check_pairs=[("noise", image, image)],
    )
    return run_convert(request, get_plugins()).bundle
