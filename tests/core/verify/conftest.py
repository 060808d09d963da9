"""Bundles with a fault planted in a graph, and one shipped pair to verify on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from matchrt.bundle import read_bundle
from matchrt.plugins import get_plugins
from matchrt.samples import sample_pairs
from matchrt.verify import VerifyRequest, VerifyResult, run_verify
from matchrt.verify.derive import derive_bundle
from matchrt.verify.subjects import How

Change = Callable[[onnx.ModelProto], object]
Plant = Callable[[Path, str, Change], Path]
CPU = How(backend="torch", options={"device": "cpu"}, threads=1)


@pytest.fixture(scope="session")
def one_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of the first shipped pair alone, with its homography."""
    pair = sample_pairs()[0]
    assert pair.homography is not None
    numbers = " ".join(str(v) for v in pair.homography.flatten())
    path = tmp_path_factory.mktemp("pairs") / "pairs.txt"
    path.write_text(f"# the first sample\n{pair.image0} {pair.image1} {numbers}\n", "utf-8")
    return path


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """A copy of a bundle with the graph of one network changed in place, and hashed anew."""

    def make(bundle: Path, network: str, change: Change) -> Path:
        opened = read_bundle(bundle)
        model = onnx.load(str(opened.graph(network)))
        before = model.SerializeToString()
        change(model)
        assert model.SerializeToString() != before
        return derive_bundle(opened, tmp_path / "planted", {network: model}).path

    return make


@pytest.fixture
def verified(one_pair: Path) -> Callable[..., VerifyResult]:
    """Run a verification on one pair, on the CPU."""

    def run(bundle: Path, **more: object) -> VerifyResult:
        request = VerifyRequest(**{"bundle": bundle, "reference": CPU, "pairs": one_pair, **more})  # type: ignore[arg-type]
        return run_verify(request, get_plugins())

    return run
