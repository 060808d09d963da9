"""A bank of grey textures: cuts of the training photographs and procedural patterns, (T, S, S) float16 in [0, 1]."""

from __future__ import annotations

import string

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX)


def photograph_cuts(photographs: list[np.ndarray], each: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(len(photographs) · each, size, size) uint8: random squares of each photograph at random scales."""
    cuts = []
    for image in photographs:
        short = min(image.shape)
        for _ in range(each):
            side = int(short * rng.uniform(0.45, 1.0))
            y, x = rng.integers(0, image.shape[0] - side + 1), rng.integers(0, image.shape[1] - side + 1)
            cut = np.rot90(image[y : y + side, x : x + side], rng.integers(0, 4))
            if rng.random() < 0.5:
                cut = cut[:, ::-1]
            how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
            cuts.append(cv2.resize(np.ascontiguousarray(cut), (size, size), interpolation=how))
    return np.stack(cuts)


def drawings(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(2 · count, size, size) uint8: pages of text and of curves."""
    letters = list(string.ascii_letters + string.digits + "+-=?!&%$#@")
    pages = []
    for _ in range(count):
        page = np.full((size, size), rng.integers(0, 256), np.uint8)
        scale, ink = rng.uniform(0.4, 2.5), int(rng.integers(0, 256))
        y = int(20 * scale)
        while y < size + 20:
            text = "".join(rng.choice(letters, 60))
            thickness = int(rng.integers(1, max(2, int(scale * 3))))
            cv2.putText(page, text, (-10, y), int(rng.choice(FONTS)), scale, ink, thickness, cv2.LINE_AA)
            y += int(rng.uniform(28, 45) * scale)
        pages.append(page)
    for _ in range(count):
        page = np.full((size, size), rng.integers(0, 256), np.uint8)
        for _ in range(int(rng.integers(5, 60))):
            ink, thickness = int(rng.integers(0, 256)), int(rng.integers(1, 6))
            a, b = rng.integers(0, size, 2).tolist(), rng.integers(0, size, 2).tolist()
            kind = rng.integers(0, 3)
            if kind == 0:
                cv2.line(page, a, b, ink, thickness, cv2.LINE_AA)
            elif kind == 1:
                axes = rng.integers(3, size // 4, 2).tolist()
                cv2.ellipse(page, a, axes, rng.uniform(0, 180), 0, rng.uniform(90, 360), ink, thickness, cv2.LINE_AA)
            else:
                cv2.rectangle(page, a, b, ink, thickness)
        pages.append(page)
    return np.stack(pages)


def fractal_noise(count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, size, size) in [0, 1]: octaves of smooth noise, amplitude falling by a random power of the frequency."""
    device = generator.device
    decay = torch.empty(count, 1, 1, 1, device=device).uniform_(0.35, 1.0, generator=generator)
    total = torch.zeros(count, 1, size, size, device=device)
    cells, amplitude = 4, torch.ones_like(decay)
    while cells <= size:
        octave = torch.randn(count, 1, cells, cells, device=device, generator=generator)
        total += amplitude * F.interpolate(octave, size=(size, size), mode="bicubic", align_corners=False)
        cells, amplitude = cells * 2, amplitude * decay
    return stretch_range(total.squeeze(1))


def voronoi(count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, size, size): random cells of flat grey, half of them with dark seams."""
    device = generator.device
    axis = torch.arange(size, device=device, dtype=torch.float32)
    out = []
    for i in range(count):
        cells = int(torch.randint(12, 220, (1,), generator=generator, device=device))
        x, y = torch.rand(2, cells, 1, 1, device=device, generator=generator) * size
        distance = (axis.reshape(1, 1, -1) - x).square() + (axis.reshape(1, -1, 1) - y).square()
        near, index = distance.topk(2, dim=0, largest=False)
        image = torch.rand(cells, device=device, generator=generator)[index[0]]
        if i % 2:
            image = image * ((near[1].sqrt() - near[0].sqrt()) / 4).clamp(0.1, 1)
        out.append(image)
    return torch.stack(out)


def waves(count: int, size: int, generator: torch.Generator) -> Tensor:
    """(count, size, size): stripes and checkerboards, bent by smooth noise and with random sharpness."""
    device = generator.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count, 1, 1, device=device).uniform_(low, high, generator=generator)

    axis = torch.arange(size, device=device, dtype=torch.float32)
    angle, frequency = uniform(0, 6.3), 2 * torch.pi / uniform(10, 70)
    bend = fractal_noise(count, size, generator) * uniform(0, 30) * (uniform(0, 1) < 0.5)
    along = axis * torch.cos(angle) + axis.reshape(-1, 1) * torch.sin(angle) + bend
    across = -axis * torch.sin(angle) + axis.reshape(-1, 1) * torch.cos(angle) + bend
    first = torch.sin(along * frequency)
    second = torch.sin(across * frequency * uniform(0.5, 2))
    both = torch.where(uniform(0, 1) < 0.5, first * second, first)
    return (both * uniform(1, 12)).clamp(-1, 1) * 0.5 + 0.5


def stretch_range(x: Tensor) -> Tensor:
    """Map each image's range to [0, 1]."""
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-6)


def texture_bank(
    photographs: list[np.ndarray], crops: int, procedural: int, size: int, seed: int, generator: torch.Generator
) -> Tensor:
    """All textures, photographs first."""
    rng = np.random.default_rng(seed)
    drawn = np.concatenate((photograph_cuts(photographs, crops, size, rng), drawings(procedural, size, rng)))
    noise = fractal_noise(2 * procedural, size, generator)
    blobs = (noise[procedural:] > 0.5).float() * 0.7 + noise[:procedural] * 0.3
    parts = [
        torch.from_numpy(drawn).to(generator.device).float() / 255,
        noise,
        blobs,
        voronoi(procedural, size, generator),
        waves(procedural, size, generator),
    ]
    return torch.cat(parts).to(torch.float16)
