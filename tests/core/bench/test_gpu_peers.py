"""The published peers run, at tiny sizes on a CPU, and give answers of the sizes that the bundle has."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matchrt.errors import UsageError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def peers() -> Any:
    path = Path(__file__).parents[3] / "benchmarks/gpu_peers.py"
    spec = importlib.util.spec_from_file_location("gpu_peers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bundle(matcher: str, variant: str = "full", **settings: Any) -> dict[str, Any]:
    return {"matcher": {"id": matcher, "variant": variant}, "settings": settings}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_lightglue_matches_the_bundles_number_of_keypoints(peers: Any, precision: str) -> None:
    tensors = {"image0": noise(1, 1, 96, 128), "image1": noise(1, 1, 128, 96)}
    answer = peers.lightglue(bundle("superpoint-lightglue", keypoints=64), tensors, "cpu", precision=precision)()
    assert answer["matches0"].shape == answer["matches1"].shape == (1, 64)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_eloftr_takes_a_batch(peers: Any, precision: str) -> None:
    tensors = {f"image{i}": noise(2, 1, 96, 128) for i in (0, 1)}
    assert peers.eloftr(bundle("eloftr"), tensors, "cpu", precision=precision)().matches.shape == (2, 2, 192)


def test_roma_gives_a_warp_both_ways(peers: Any) -> None:
    tensors = {"images": noise(1, 2, 3, 112, 112), "images_high": noise(1, 2, 3, 128, 128)}
    settings = bundle("roma", size=[112, 112], upsample_size=[128, 128], symmetric=True)
    warp, certainty = peers.roma(settings, tensors, "cpu")()
    assert (tuple(warp.shape), tuple(certainty.shape)) == ((1, 128, 256, 4), (1, 128, 256))


def test_other_work_and_unknown_ways_are_refused(peers: Any) -> None:
    with pytest.raises(UsageError, match="not of superpoint-lightglue:mini"):
        peers.lightglue(bundle("superpoint-lightglue", "mini", keypoints=64), {}, "cpu")
    with pytest.raises(UsageError, match="precision is fp32 or fp16"):
        peers.eloftr(bundle("eloftr"), {}, "cpu", precision="int8")
