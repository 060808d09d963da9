"""Calibrated random networks, synthetic pairs, and a plain restatement of EfficientLoFTR's matching rules to compare with.

The rules are written from the specification (upstream's published behaviour) in loops and full matrices, sharing nothing with
the exported form: full conf matrix, full-resolution fine maps, unfold, one match at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from matchrt.cli import run
from matchrt.samples import sample_pairs
from matchrt_eloftr.networks import Architecture, EfficientLoFTR, GraphSettings
from matchrt_eloftr.networks.backbone import RepVGGBlock
from matchrt_eloftr.networks.network import fuse_backbone
from matchrt_eloftr.random_weights import calibrate, randomise

SMALL = Architecture(dims=(16, 32, 64), blocks=(1, 1, 2), layers=1, heads=4, regress_channels=4)


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """(H, W) float32 in [0, 1]: smooth noise of several octaves."""
    noise = np.random.default_rng(seed)
    total = torch.zeros(1, 1, height, width)
    for octave in range(2, 7):
        cells = 2**octave
        grid = torch.from_numpy(noise.standard_normal((1, 1, cells + 1, cells + 1)).astype(np.float32))
        total += F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=True) * 0.7**octave
    out = total[0, 0].numpy()
    return np.asarray((out - out.min()) / (out.max() - out.min()), np.float32)


def shifted_pair(height: int, width: int, shift: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two (1, 1, H, W) images; pixel (x, y) of the first is (x + shift[0], y + shift[1]) of the second."""
    margin = 64
    big = texture(height + 2 * margin, width + 2 * margin, seed)
    first = big[margin : margin + height, margin : margin + width]
    dx, dy = shift
    second = big[margin - dy : margin - dy + height, margin - dx : margin - dx + width]
    return torch.from_numpy(first.copy())[None, None], torch.from_numpy(second.copy())[None, None]


def swap_halves(image: Tensor) -> Tensor:
    """Left and right halves exchanged: a pairing that does not grow with the cell index."""
    left, right = image.chunk(2, dim=-1)
    return torch.cat((right, left), dim=-1)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_network() -> Callable[..., EfficientLoFTR]:
    """`make_network(settings, pair, small=True, seed=0)`: a calibrated random network in eval mode."""

    def make(
        settings: GraphSettings, pair: tuple[Tensor, Tensor], *, small: bool = True, seed: int = 0
    ) -> EfficientLoFTR:
        network = EfficientLoFTR(settings, SMALL if small else Architecture())
        torch.manual_seed(seed)
        randomise(network)
        return calibrate(network, *pair)

    return make


@pytest.fixture(scope="session")
def resettle() -> Callable[..., EfficientLoFTR]:
    """`resettle(network, **changes)`: the same weights under changed graph settings."""

    def make(network: EfficientLoFTR, **changes: object) -> EfficientLoFTR:
        settings = replace(network.settings, **changes)  # type: ignore[arg-type]
        deploy = not any(isinstance(m, RepVGGBlock) and not m.deploy for m in network.modules())
        other = EfficientLoFTR(settings, network.architecture, deploy=deploy)
        other.load_state_dict(network.state_dict())
        return other.eval().requires_grad_(False)

    return make


@dataclass(frozen=True)
class PlainMatches:
    cells: list[tuple[int, int]]
    scores: np.ndarray
    keypoints0: np.ndarray
    keypoints1: np.ndarray


class Plain:
    """The rules, one pair at a time, from a network's dense tensors."""

    def __init__(self, network: EfficientLoFTR) -> None:
        self.network = network

    @torch.no_grad()
    def dense(
        self, image0: Tensor, image1: Tensor, valid: tuple[tuple[int, int], tuple[int, int]] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Coarse features (1, C, h, w), zero outside `valid` (pixels), and full-resolution fine maps (1, C, H, W)."""
        network = self.network
        coarse0, coarse1, middle, fine = network.features(image0, image1)
        if valid is None:
            coarse0, coarse1 = network.loftr_coarse(coarse0, coarse1)
        else:
            crops = [c[..., : v[0] // 8, : v[1] // 8] for c, v in zip((coarse0, coarse1), valid, strict=True)]
            full = [torch.zeros_like(coarse0), torch.zeros_like(coarse1)]
            for target, out in zip(full, network.loftr_coarse(*crops), strict=True):
                target[..., : out.shape[-2], : out.shape[-1]] = out
            coarse0, coarse1 = full
        map0, map1 = network.pyramid(coarse0, coarse1, middle, fine)
        maps = [F.interpolate(m, scale_factor=2.0, mode="bilinear", align_corners=False) for m in (map0, map1)]
        return coarse0, coarse1, maps[0], maps[1]

    def similarity(
        self, coarse0: Tensor, coarse1: Tensor, valid: tuple[tuple[int, int], tuple[int, int]] | None
    ) -> Tensor:
        """(L0, L1), filled with -1e9 where either cell is invalid."""
        width = coarse0.shape[1] ** 0.5
        left, right = (c[0].flatten(1).T / width for c in (coarse0, coarse1))
        similarity = left @ right.T / 0.1
        if valid is not None:
            shown = []
            for coarse, (height, width_px) in zip((coarse0, coarse1), valid, strict=True):
                mask = torch.zeros(coarse.shape[-2:], dtype=torch.bool)
                mask[: height // 8, : width_px // 8] = True
                shown.append(mask.flatten())
            similarity = similarity.masked_fill(~(shown[0][:, None] & shown[1][None]), -1e9)
        return similarity

    def match(
        self,
        image0: Tensor,
        image1: Tensor,
        threshold: float,
        *,
        mutual: bool = True,
        raw: bool = False,
        valid: tuple[tuple[int, int], tuple[int, int]] | None = None,
    ) -> PlainMatches:
        """What upstream returns, ordered by (i, j)."""
        coarse0, coarse1, fine0, fine1 = self.dense(image0, image1, valid)
        similarity = self.similarity(coarse0, coarse1, valid)
        conf = similarity if raw else similarity.softmax(0) * similarity.softmax(1)
        keep = conf > threshold
        if mutual:
            keep &= (conf == conf.max(1, keepdim=True)[0]) & (conf == conf.max(0, keepdim=True)[0])
        sizes = [tuple(c.shape[-2:]) for c in (coarse0, coarse1)]
        limits = sizes if valid is None else [(h // 8, w // 8) for h, w in valid]
        maps = fine0[0].numpy(), F.pad(fine1[0], (1, 1, 1, 1)).numpy()
        cells, scores, points0, points1 = [], [], [], []
        for i, j in keep.nonzero().tolist():
            at = [divmod(cell, size[1]) for cell, size in zip((i, j), sizes, strict=True)]
            if not all(2 <= p[0] < m[0] - 2 and 2 <= p[1] < m[1] - 2 for p, m in zip(at, limits, strict=True)):
                continue
            point0, point1 = self.refine(*maps, at[0], at[1])
            cells.append((i, j))
            scores.append(float(conf[i, j]))
            points0.append(point0)
            points1.append(point1)
        return PlainMatches(
            cells,
            np.asarray(scores, np.float32),
            np.asarray(points0, np.float32).reshape(-1, 2),
            np.asarray(points1, np.float32).reshape(-1, 2),
        )

    def refine(
        self, fine0: np.ndarray, fine1: np.ndarray, at0: tuple[int, int], at1: tuple[int, int]
    ) -> tuple[list[float], list[float]]:
        """Both fine stages for one pair of cells (row, column), on maps (C, H, W) and (C, H + 2, W + 2) padded by zeros."""
        channels, tail = len(fine0), self.network.architecture.regress_channels
        window0 = fine0[:, 8 * at0[0] : 8 * at0[0] + 8, 8 * at0[1] : 8 * at0[1] + 8].reshape(channels, 64)
        window1 = fine1[:, 8 * at1[0] : 8 * at1[0] + 10, 8 * at1[1] : 8 * at1[1] + 10].reshape(channels, 100)
        scale = np.float32(channels**0.5)
        first = (window0[:-tail] / scale).T @ (window1[:-tail] / scale)
        conf = (softmax(first, 0) * softmax(first, 1)).reshape(64, 10, 10)[:, 1:-1, 1:-1].reshape(-1)
        left, right = divmod(int(conf.argmax()), 64)
        second = (window0[-tail:].T @ (window1[-tail:] / np.float32(tail**0.5))).reshape(64, 10, 10)[left]
        row, column = divmod(right, 8)
        steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        heat = softmax(np.asarray([second[row + dy, column + dx] for dy, dx in steps]) / np.float32(10.0), 0)
        move_x = float(sum(h * dx for h, (_, dx) in zip(heat, steps, strict=True)))
        move_y = float(sum(h * dy for h, (dy, _) in zip(heat, steps, strict=True)))
        point0 = [8 * at0[1] + left % 8 - 3.5, 8 * at0[0] + left // 8 - 3.5]
        point1 = [8 * at1[1] + column - 3.5 + move_x, 8 * at1[0] + row - 3.5 + move_y]
        return point0, point1


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    raised = np.exp(values - values.max(axis, keepdims=True))
    return np.asarray(raised / raised.sum(axis, keepdims=True))


@pytest.fixture(scope="session")
def plain() -> type[Plain]:
    return Plain


@pytest.fixture(scope="session")
def pairs() -> Callable[..., tuple[Tensor, Tensor]]:
    return shifted_pair


@dataclass(frozen=True)
class Difference:
    """How fixed-size outputs differ from plain matches: cells only in one, and the largest differences on shared ones."""

    matches: int
    missing: frozenset[tuple[int, int]]
    extra: frozenset[tuple[int, int]]
    keypoints0: float
    keypoints1: float
    score: float

    def require(self, *, at_least: int, keypoints1: float = 2e-5, score: float = 1e-4) -> None:
        """Equal sets of at least `at_least` matches, keypoints0 equal, the rest within the limits."""
        assert self.matches >= at_least, f"only {self.matches} matches: the comparison would be empty"
        assert not self.missing, f"missing {sorted(self.missing)[:5]}"
        assert not self.extra, f"extra {sorted(self.extra)[:5]}"
        assert self.keypoints0 == 0.0
        assert self.keypoints1 <= keypoints1
        assert self.score <= score


def compare(expected: PlainMatches, outputs: Sequence[Any], threshold: float, entry: int = 0) -> Difference:
    """Outputs (arrays or tensors, in the network's order) of batch entry `entry`, above `threshold`, against `expected`."""
    points0, points1, scores, cells = (np.asarray(o)[entry] for o in list(outputs)[:4])
    slots = np.flatnonzero(scores > threshold)
    found = {(int(cells[s, 0]), int(cells[s, 1])): s for s in slots}
    assert len(found) == len(slots), "the same pair of cells came back twice"
    wanted = {cell: n for n, cell in enumerate(expected.cells)}
    shared = [(wanted[c], found[c]) for c in wanted.keys() & found.keys()]
    rows, at = [a for a, _ in shared], [b for _, b in shared]

    def largest(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max()) if a.size else 0.0

    return Difference(
        matches=len(wanted),
        missing=frozenset(wanted.keys() - found.keys()),
        extra=frozenset(found.keys() - wanted.keys()),
        keypoints0=largest(expected.keypoints0[rows], points0[at]),
        keypoints1=largest(expected.keypoints1[rows], points1[at]),
        score=largest(expected.scores[rows], scores[at]),
    )


@pytest.fixture(scope="session")
def differ() -> Callable[..., Difference]:
    return compare


@pytest.fixture(scope="session")
def swapped() -> Callable[[Tensor], Tensor]:
    return swap_halves


# The whole way, on photographs

HEIGHT, WIDTH = 128, 160
SHIFT = (16, 8)
KEYS = json.loads((Path(__file__).parent / "data" / "keys.json").read_text("utf-8"))


@dataclass(frozen=True)
class Photographs:
    """Two crops of one photograph: pixel (x, y) of the first is (x, y) - `SHIFT` of the second. `tall` is the second, cut narrower."""

    first: Path
    second: Path
    tall: Path
    arrays: tuple[Tensor, Tensor]


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    folder = tmp_path_factory.mktemp("photographs")
    grey = np.asarray(Image.open(sample_pairs()[0].image0).convert("L"))
    crops = [grey[200 + dy : 200 + dy + HEIGHT, 120 + dx : 120 + dx + WIDTH] for dx, dy in ((0, 0), SHIFT)]
    for name, crop in zip(("a", "b", "tall"), (*crops, crops[1][:, :128]), strict=True):
        Image.fromarray(crop).save(folder / f"{name}.png")
    tensors = [torch.from_numpy(c.copy())[None, None].float() / 255 for c in crops]
    return Photographs(folder / "a.png", folder / "b.png", folder / "tall.png", (tensors[0], tensors[1]))


@pytest.fixture(scope="session")
def published(make_network: Any, photographs: Photographs) -> EfficientLoFTR:
    """The published architecture, calibrated on the photographs."""
    return make_network(GraphSettings((HEIGHT, WIDTH), (HEIGHT, WIDTH)), photographs.arrays, small=False)


@pytest.fixture(scope="session")
def checkpoints(published: EfficientLoFTR, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in three published forms, by the variant that each is given to."""
    folder = tmp_path_factory.mktemp("checkpoints")
    state = {name: value.clone() for name, value in published.state_dict().items()}
    deploy = {name: value.clone() for name, value in fuse_backbone(published).state_dict().items()}
    assert (len(state), len(deploy)) == (447, 147)
    paths = {
        "eloftr": folder / "eloftr_outdoor.ckpt",
        "matchanything-eloftr": folder / "model.safetensors",
        "eloftr:opt": folder / "deploy.pth",
    }
    lightning = {"state_dict": {f"matcher.{k}": v for k, v in state.items()}, "epoch": 7, "global_step": 9}
    torch.save(lightning, paths["eloftr"])
    save_file({KEYS["transformers"][k]: v for k, v in state.items()}, paths["matchanything-eloftr"])
    torch.save(deploy, paths["eloftr:opt"])
    return paths


CHOICES = {
    "eloftr": ["--set", "slots=40", "--set", "recipe=stretch"],
    "matchanything-eloftr": ["--set", "recipe=aspect", "--set", "per_row=8"],
    "eloftr:opt": ["--set", "slots=none", "--set", "recipe=stretch"],
}


@pytest.fixture(scope="session")
def bundles(checkpoints: dict[str, Path], shared: Any) -> Callable[[str], Path]:
    """`bundles(variant)`: converted by the command line, once in a run."""

    def make(variant: str) -> Path:
        with shared("eloftr-bundles") as folder:
            path: Path = folder / variant.replace(":", "-")
            if not path.exists():
                convert(variant, path)
        return path

    def convert(variant: str, path: Path) -> None:
        argv = [
            "convert",
            variant,
            "--weights",
            str(checkpoints[variant]),
            "-o",
            str(path),
            "--size",
            f"{HEIGHT}x{WIDTH}",
        ]
        assert run([*argv, *CHOICES[variant], "--json"]) == 0

    return make
