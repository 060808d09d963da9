"""The training scripts run from nothing to weights on a CPU, and the data they train on is right."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from matchrt_lightglue.networks import LightGlue, SuperPoint

ROOT = Path(__file__).parents[3]
TRAINING = ROOT / "plugins/lightglue/training"
LIMITS = {
    "rotation": 50.0, "upright": 30.0, "scale": 1.25, "ratio": 1.75, "perspective": 0.22, "stretch": 1.25,
    "shift": 0.25, "coarse": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _training_path() -> Iterator[None]:
    sys.path.insert(0, str(TRAINING))
    yield
    sys.path.remove(str(TRAINING))


def test_smoke_training_writes_weights_that_load_strictly(tmp_path: Path) -> None:
    command = [sys.executable, str(TRAINING / "train.py"), "--smoke", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    finished = [e["stage"] for e in entries if e.get("finished")]
    assert finished == ["corners", "features", "features", "matcher", "matcher_large"]
    sizes = json.loads((tmp_path / "config.json").read_text())["network"]
    for name, network in (
        ("superpoint", SuperPoint(**sizes["superpoint"])),
        ("lightglue", LightGlue(**sizes["lightglue"])),
    ):
        before = {k: v.clone() for k, v in network.state_dict().items()}
        state = load_file(tmp_path / f"{name}_mini.safetensors")
        assert {v.dtype for v in state.values()} == {torch.float16}
        network.load_state_dict({k: v.float() for k, v in state.items()}, strict=True)
        assert any(not torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_views_agree_with_opencv() -> None:
    from views import look, pair_homographies

    generator = torch.Generator().manual_seed(3)
    image = cv2.GaussianBlur(np.random.default_rng(0).random((96, 96), np.float32), (0, 0), 3)
    H = pair_homographies(4, 96, (64, 80), LIMITS, generator)[0]
    views, inside = look(torch.from_numpy(image).expand(4, -1, -1), H, (64, 80))
    for view, seen, h in zip(views, inside, H, strict=True):
        expected = cv2.warpPerspective(image, h.double().numpy(), (80, 64), flags=cv2.INTER_LINEAR)
        inner = cv2.erode(seen[0].numpy().astype(np.uint8), np.ones((5, 5))) > 0
        assert inner.mean() > 0.2
        assert np.abs(view[0].numpy() - expected)[inner].max() < 0.01


def test_coarse_views_keep_the_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    import views

    monkeypatch.setattr(views, "change_light", lambda image, generator: image)
    smooth = cv2.GaussianBlur(np.random.default_rng(1).random((128, 128), np.float32), (0, 0), 6)
    image = torch.from_numpy((smooth - smooth.min()) / (smooth.max() - smooth.min())).expand(8, -1, -1)
    shown, inside, H = views.see_pair(image, (64, 80), LIMITS | {"coarse": 1.0}, torch.Generator().manual_seed(3))
    clean, seen = views.look(image, H[0], (64, 80))
    both = inside[0] & seen
    wrong = (shown[0].roll(1, 3) - clean)[both].abs().mean()
    assert (shown[0] - clean)[both].abs().mean() < wrong / 3


def test_cell_targets_name_the_pixel_of_the_best_point() -> None:
    from labels import cell_targets

    points = torch.tensor([[[9.4, 2.6], [12.0, 3.0], [31.0, 31.0], [-5.0, 4.0]]])
    inside = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    inside[..., 24:, :] = False
    targets = cell_targets(points, torch.tensor([[0.9, 0.2, 0.5, 1.0]]), inside)[0]
    assert targets[0, 1] == 3 * 8 + 1  # (9, 3), the stronger of the two in that cell
    assert (targets[3] == -100).all()
    assert (targets == 64).sum() == 11


def test_refine_finds_the_corners_of_a_drawn_square() -> None:
    from labels import refine

    image = np.zeros((64, 64), np.uint8)
    image[18:42, 20:45] = 255  # its edges run between pixels
    corners = np.array([[19.5, 17.5], [44.5, 17.5], [44.5, 41.5], [19.5, 41.5]], np.float32)
    start = torch.from_numpy(corners)[None] + torch.tensor([0.9, -0.7])
    moved = refine(torch.from_numpy(image)[None].float() / 255, start)[0]
    before = (start[0] - torch.from_numpy(corners)).norm(dim=1).max()
    assert (moved - torch.from_numpy(corners)).norm(dim=1).max() < 0.25 < before


def test_held_out_photographs_are_not_trained_on() -> None:
    from make_samples import RECIPES
    from settings import load_config

    photographs = load_config(TRAINING / "config.toml", smoke=False)["photographs"]
    assert not set(photographs["training"]) & set(photographs["held_out"])
    assert {f"skimage:{r.photograph}" for r in RECIPES} <= set(photographs["held_out"])
