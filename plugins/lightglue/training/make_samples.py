"""Write the sample pairs that `matchrt demo` matches, from photographs in scikit-image's wheel.

    uv run python plugins/lightglue/training/make_samples.py core/src/matchrt/samples

Image 1 of each pair is image 0 seen through a known homography with a change of light, so that the recovered
homography can be compared with the true one. Both photographs are on the held-out list of `config.toml`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import skimage


@dataclass(frozen=True)
class Recipe:
    """How image 1 of a pair is made."""

    name: str
    photograph: str
    size: tuple[int, int]  # (height, width) of image 1
    rotation: float  # degrees, anticlockwise on the screen
    zoom: float
    shift: tuple[float, float]  # (x, y) of image 0's point at image 1's centre, relative to image 0's centre
    perspective: tuple[float, float]
    gamma: float
    gain: float
    tint: tuple[float, float, float]  # blue, green, red
    shadow: tuple[float, float, float]  # angle (degrees), position (0 to 1), strength
    noise: float  # standard deviation in grey levels


RECIPES = (
    Recipe(
        "astronaut", "astronaut.png", (440, 520), -24.0, 1.42, (-10.0, 15.0), (2.2e-4, -1.4e-4),
        1.5, 0.80, (1.12, 1.0, 0.86), (35.0, 0.45, 0.45), 4.0,
    ),
    Recipe(
        "coffee", "coffee.png", (420, 560), 17.0, 1.5, (30.0, 5.0), (-2.0e-4, 1.8e-4),
        0.62, 1.0, (0.82, 1.0, 1.10), (120.0, 0.60, 0.35), 5.0,
    ),
)  # fmt: skip


def homography(recipe: Recipe, size0: tuple[int, int]) -> np.ndarray:
    """3x3 float64, pixel centres of image 0 to pixel centres of image 1."""
    (height0, width0), (height1, width1) = size0, recipe.size
    angle = np.deg2rad(recipe.rotation)
    cos, sin = recipe.zoom * np.cos(angle), recipe.zoom * np.sin(angle)
    centre = np.array([(width0 - 1) / 2 + recipe.shift[0], (height0 - 1) / 2 + recipe.shift[1]])
    to_origin = np.array([[1, 0, -centre[0]], [0, 1, -centre[1]], [0, 0, 1.0]])
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [recipe.perspective[0], recipe.perspective[1], 1.0]])
    to_centre = np.array([[1, 0, (width1 - 1) / 2], [0, 1, (height1 - 1) / 2], [0, 0, 1.0]])
    H = to_centre @ turn @ to_origin
    return H / H[2, 2]


def change_light(image: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Gamma, gain, tint, a soft-edged shadow and noise on a BGR uint8 image."""
    height, width = image.shape[:2]
    x = (image.astype(np.float32) / 255.0) ** recipe.gamma * recipe.gain * np.array(recipe.tint, np.float32)
    angle, position, strength = recipe.shadow
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    along = columns / width * np.cos(np.deg2rad(angle)) + rows / height * np.sin(np.deg2rad(angle))
    x *= (1 - strength / (1 + np.exp(-(along - position) * 25)))[..., None]
    x += rng.normal(0, recipe.noise / 255.0, x.shape).astype(np.float32)
    return np.rint(x.clip(0, 1) * 255).astype(np.uint8)


def make_pair(recipe: Recipe, folder: Path) -> dict[str, object]:
    """Write both images and return the entry of `samples.json`."""
    image0 = cv2.imread(str(Path(skimage.__file__).parent / "data" / recipe.photograph))
    height0, width0 = image0.shape[:2]
    H = homography(recipe, (height0, width0))
    height1, width1 = recipe.size
    corners = np.array([[[0, 0]], [[width1 - 1, 0]], [[width1 - 1, height1 - 1]], [[0, height1 - 1]]], np.float64)
    back = cv2.perspectiveTransform(corners, np.linalg.inv(H))[:, 0]
    if back.min() < 0 or (back[:, 0] > width0 - 1).any() or (back[:, 1] > height0 - 1).any():
        raise SystemExit(f"{recipe.name}: image 1 looks outside image 0: {back.tolist()}")
    image1 = cv2.warpPerspective(image0, H, (width1, height1), flags=cv2.INTER_CUBIC)
    image1 = change_light(image1, recipe, np.random.default_rng(7))
    files = [f"{recipe.name}_0.jpg", f"{recipe.name}_1.jpg"]
    for name, image in zip(files, (image0, image1), strict=True):
        cv2.imwrite(str(folder / name), image, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return {"name": recipe.name, "image0": files[0], "image1": files[1], "homography": H.tolist()}


def main() -> None:
    """Write the images and `samples.json` into the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [make_pair(recipe, folder) for recipe in RECIPES]
    document = {
        "convention": "homography maps (x, y) pixels of image0 to image1, pixel centres at integers; null: unknown",
        "pairs": pairs,
    }
    (folder / "samples.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
