"""Held-out pairs: photographs never trained on, through known homographies and changes of light.

Written with numpy and OpenCV, apart from the training generator, so that an error there would show here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from settings import photograph

LONGEST = 640
"""Longer side of a photograph, at most."""


@dataclass(frozen=True)
class Pair:
    """Two grey images (H, W) uint8 and the homography from pixels of the first to pixels of the second."""

    photograph: str
    strong: bool
    rotation: float
    image0: np.ndarray
    image1: np.ndarray
    homography: np.ndarray

    @property
    def groups(self) -> list[str]:
        """The rows of the table that this pair counts for."""
        return [
            "all",
            "strong light" if self.strong else "mild light",
            "rotation under 15°" if abs(self.rotation) < 15 else "rotation 15° to 45°",
            self.photograph.split(":")[1],
        ]


def held_out_pairs(names: list[str], each: int, seed: int, folder: Path | None = None) -> list[Pair]:
    """`each` pairs of every photograph; every second one with a strong change of light."""
    pairs = []
    for number, name in enumerate(names):
        image = photograph(name, folder)
        scale = LONGEST / max(image.shape)
        if scale < 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for k in range(each):
            rng = np.random.default_rng([seed, number, k])
            pairs.append(_make(name, image, k % 2 == 1, rng))
    return pairs


def _make(name: str, image: np.ndarray, strong: bool, rng: np.random.Generator) -> Pair:
    height, width = image.shape
    while True:
        rotation = rng.uniform(-45, 45)
        H = _homography(rotation, (height, width), rng)
        inside = cv2.warpPerspective(np.ones_like(image), H, (width, height), flags=cv2.INTER_NEAREST)
        if inside.mean() > 0.5:
            break
    view = cv2.warpPerspective(image, H, (width, height), flags=cv2.INTER_LINEAR, borderValue=float(image.mean()))
    return Pair(name, strong, rotation, _light(image, False, rng), _light(view, strong, rng), H)


def _homography(rotation: float, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Rotation about the centre, scale 0.7 to 1.4, stretch, tilt and shift."""
    height, width = size
    angle, scale, stretch = np.deg2rad(rotation), np.exp(rng.uniform(-0.35, 0.35)), np.exp(rng.uniform(-0.1, 0.1))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([scale * stretch, scale / stretch])
    H = np.eye(3)
    H[:2, :2] = linear
    H[:2, 2] = rng.uniform(-0.1, 0.1, 2) * (width, height)
    H[2, :2] = rng.uniform(-0.2, 0.2, 2) / (max(size) / 2)
    centre = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    H = centre @ H @ np.linalg.inv(centre)
    return H / H[2, 2]


def _light(image: np.ndarray, strong: bool, rng: np.random.Generator) -> np.ndarray:
    """Contrast, gamma, gain, shadow (strong only), blur and noise."""

    def factor(mild: float, hard: float) -> float:
        limit = np.log(hard if strong else mild)
        return float(np.exp(rng.uniform(-limit, limit)))

    x = image.astype(np.float32) / 255
    x = (x.mean() + (x - x.mean()) * min(factor(1.2, 2.0), 1.3)).clip(0, 1)
    x = x ** factor(1.25, 2.2) * factor(1.15, 2.0)
    if strong:
        height, width = x.shape
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        angle, depth, sharp = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.75), np.exp(rng.uniform(1, 4))
        along = (columns / width - 0.5) * np.cos(angle) + (rows / height - 0.5) * np.sin(angle) - rng.uniform(-0.3, 0.3)
        x = x * (1 - depth / (1 + np.exp(-along * sharp)))
    sigma = rng.uniform(0, 1.8 if strong else 0.7)
    if sigma > 0.2:
        x = cv2.GaussianBlur(x, (0, 0), sigma)
    x = x + rng.normal(0, rng.uniform(3, 16) / 255 if strong else rng.uniform(0, 4) / 255, x.shape)
    return np.rint(x.clip(0, 1) * 255).astype(np.uint8)


def draw_matches(pair: Pair, k0: np.ndarray, k1: np.ndarray, path: Path) -> None:
    """Both images side by side; green lines are within 3 pixels of the truth, red ones are not."""
    (h0, w0), (h1, w1) = pair.image0.shape, pair.image1.shape
    canvas = np.zeros((max(h0, h1), w0 + w1), np.uint8)
    canvas[:h0, :w0], canvas[:h1, w0:] = pair.image0, pair.image1
    picture = cv2.cvtColor(canvas, cv2.COLOR_GRAY2BGR)
    good = reprojection(k0, k1, pair.homography) <= 3
    for a, b, right in zip(k0, np.add(k1, (w0, 0)), good, strict=True):
        colour = (80, 220, 80) if right else (60, 60, 255)
        cv2.line(
            picture,
            tuple(np.rint(a).astype(int).tolist()),
            tuple(np.rint(b).astype(int).tolist()),
            colour,
            1,
            cv2.LINE_AA,
        )
    cv2.imwrite(str(path), picture)


def project(points: np.ndarray, H: np.ndarray) -> np.ndarray:
    """(N, 2) through H."""
    if len(points) == 0:
        return points.reshape(0, 2)
    mapped: Any = cv2.perspectiveTransform(points.reshape(-1, 1, 2).astype(np.float64), H)
    return mapped.reshape(-1, 2)


def reprojection(k0: np.ndarray, k1: np.ndarray, H: np.ndarray) -> np.ndarray:
    """Distance (N,) in image 1 between where a point should land and its match."""
    return np.linalg.norm(project(k0, H) - k1, axis=1)
