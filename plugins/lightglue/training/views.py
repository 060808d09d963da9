"""Views of canvases: random homographies, and changes of light and sharpness, in batches on the GPU.

Homographies are (B, 3, 3) float32 and map (x, y) of pixel centres at integers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from canvases import uniform
from torch import Tensor


def transform(H: Tensor, points: Tensor) -> Tensor:
    """Points (B, N, 2) through H (B, 3, 3); a point behind the camera goes far away."""
    mapped = F.pad(points, (0, 1), value=1.0) @ H.transpose(1, 2)
    depth = mapped[..., 2:]
    return torch.where(depth > 1e-4, mapped[..., :2] / depth.clamp_min(1e-4), torch.full_like(mapped[..., :2], -1e5))


def pair_homographies(
    batch: int, canvas: int, view: tuple[int, int], limits: dict[str, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Canvas to view, for the two views of each pair."""
    degrees = torch.pi / 180
    turn0 = uniform(generator, -limits["upright"], limits["upright"], batch) * degrees
    turn1 = turn0 + uniform(generator, -limits["rotation"], limits["rotation"], batch) * degrees
    both = torch.exp(uniform(generator, -1, 1, batch) * torch.log(torch.tensor(limits["scale"])).item())
    ratio = torch.exp(uniform(generator, -0.5, 0.5, batch) * torch.log(torch.tensor(limits["ratio"])).item())
    # A quarter of the pairs share their size and nearly their angle: only light and detail differ.
    still = uniform(generator, 0, 1, batch) < 0.25
    turn1, ratio = torch.where(still, turn0 + (turn1 - turn0) * 0.1, turn1), torch.where(still, ratio**0.2, ratio)
    span = torch.tensor([view[1], view[0]], device=generator.device, dtype=torch.float32)
    room = ((canvas - span / both.unsqueeze(1)) / 2).clamp_min(0.05 * canvas)
    centre0 = canvas / 2 + uniform(generator, -1, 1, batch, 2) * room
    shift = uniform(generator, -limits["shift"], limits["shift"], batch, 2) * span / both.unsqueeze(1)
    first = homographies(turn0, both * ratio, centre0, view, limits, generator)
    second = homographies(turn1, both / ratio, centre0 + shift, view, limits, generator)
    return first, second


def homographies(
    turn: Tensor,
    scale: Tensor,
    centre: Tensor,
    view: tuple[int, int],
    limits: dict[str, float],
    generator: torch.Generator,
) -> Tensor:
    """Turn, scale, stretch along a random axis and tilt about `centre` (B, 2), which lands at the view's centre."""
    batch = len(turn)
    stretch = torch.exp(uniform(generator, -0.5, 0.5, batch) * torch.log(torch.tensor(limits["stretch"])).item())
    axis = uniform(generator, 0, torch.pi, batch)
    squeeze = _rotation(axis) @ torch.diag_embed(torch.stack((stretch, 1 / stretch), 1)) @ _rotation(-axis)
    linear = _rotation(turn) @ squeeze * scale[:, None, None]
    half = max(view) / 2
    tilt = uniform(generator, -1, 1, batch, 2) * limits["perspective"] / half
    H = torch.zeros(batch, 3, 3, device=turn.device)
    # Centre to the origin, linear part, tilt in view pixels, origin to the view's centre.
    H[:, :2, :2] = linear
    H[:, :2, 2] = -(linear @ centre.unsqueeze(-1)).squeeze(-1)
    H[:, 2, :] = (tilt.unsqueeze(1) @ H[:, :2, :]).squeeze(1)
    H[:, 2, 2] += 1
    middle = torch.tensor([(view[1] - 1) / 2, (view[0] - 1) / 2], device=turn.device)
    H[:, :2] += middle.reshape(1, 2, 1) * H[:, 2:]
    return H / H.abs().amax((1, 2), keepdim=True)


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), 1), torch.stack((sin, cos), 1)), 1)


def invert(H: Tensor) -> Tensor:
    """Inverse in float64, returned in float32."""
    return torch.linalg.inv(H.double()).float()


def pixel_grid(height: int, width: int, device: torch.device) -> Tensor:
    """(1, H · W, 2): (x, y) of every pixel."""
    x = torch.arange(width, device=device, dtype=torch.float32).repeat(height)
    y = torch.arange(height, device=device, dtype=torch.float32).repeat_interleave(width)
    return torch.stack((x, y), -1).unsqueeze(0)


def look(images: Tensor, H: Tensor, view: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Views (B, 1, h, w) of `images` (B, S, S) through H (image to view), and where they see the image (B, 1, h, w)."""
    size = torch.tensor([images.shape[-1] - 1, images.shape[-2] - 1], device=H.device)
    grid = (transform(invert(H), pixel_grid(*view, H.device)) / size * 2 - 1).reshape(-1, *view, 2)
    inside = (grid.abs() <= 1).all(-1).unsqueeze(1)
    return F.grid_sample(images.unsqueeze(1), grid, align_corners=True), inside


def fill_outside(image: Tensor, inside: Tensor, generator: torch.Generator) -> Tensor:
    """Put a flat grey or another view of the batch where the canvas ends."""
    batch = len(image)
    flat = uniform(generator, 0, 1, batch, 1, 1, 1) ** 2
    other = torch.where(uniform(generator, 0, 1, batch, 1, 1, 1) < 0.6, flat, image.roll(1, 0))
    return torch.where(inside, image, other)


def change_light(image: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Contrast, gamma, gain, shadows, blur, noise and 8-bit rounding on `image` (B, 1, h, w) in [0, 1].

    Each image draws its own amount between nothing and `strength`; 1 is as strong as `evaluate.py`'s strong changes.
    """
    batch, _, height, width = image.shape
    amount = uniform(generator, 0, 1, batch, 1, 1, 1) * strength

    def spread(low: float, high: float) -> Tensor:
        """Log-uniform factor between `low` and `high`, drawn towards 1 by the image's amount."""
        factor = torch.empty(batch, 1, 1, 1, device=image.device).uniform_(0, 1, generator=generator)
        logs = torch.log(torch.tensor([low, high])).tolist()
        return torch.exp((logs[0] + factor * (logs[1] - logs[0])) * amount)

    mean = image.mean((2, 3), keepdim=True)
    x = (mean + (image - mean) * spread(0.4, 1.4)).clamp(0, 1)
    x = (x + 1e-3) ** spread(0.4, 2.6) * spread(0.35, 1.6)
    x = x * _shadows(batch, height, width, amount, generator)
    x = _blur(x, amount, generator)
    sigma = uniform(generator, 0, 1, batch, 1, 1, 1).square() * amount * 0.085
    x = x + torch.randn(x.shape, device=x.device, generator=generator) * sigma
    return (x.clamp(0, 1) * 255).round() / 255


def _shadows(batch: int, height: int, width: int, amount: Tensor, generator: torch.Generator) -> Tensor:
    """Smooth light fields times half-planes of shadow with edges from hard to soft."""
    field = torch.randn(batch, 1, 4, 4, device=generator.device, generator=generator)
    field = F.interpolate(field, size=(height, width), mode="bicubic", align_corners=True)
    total = torch.exp(field * amount * 0.35)
    rows = torch.linspace(-1, 1, height, device=generator.device).reshape(1, 1, -1, 1)
    columns = torch.linspace(-1, 1, width, device=generator.device).reshape(1, 1, 1, -1)
    for _ in range(2):
        angle, place, sharp, depth = (uniform(generator, 0, 1, batch, 1, 1, 1) for _ in range(4))
        along = columns * torch.cos(angle * 6.2832) + rows * torch.sin(angle * 6.2832) - (place * 1.6 - 0.8)
        total = total * (1 - depth * amount * 0.75 * torch.sigmoid(along * torch.exp(1 + 4 * sharp)))
    return total


def _blur(x: Tensor, amount: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur for some, motion blur for some, each with a kernel of its own."""
    batch, radius = len(x), 4
    axis = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float32)
    sigma = 0.05 + 2.0 * (uniform(generator, 0, 1, batch, 1, 1, 1) * amount)
    turn = uniform(generator, 0, torch.pi, batch, 1, 1, 1)
    moving = uniform(generator, 0, 1, batch, 1, 1, 1) < 0.35
    u = axis * turn.cos() + axis.reshape(-1, 1) * turn.sin()
    v = -axis * turn.sin() + axis.reshape(-1, 1) * turn.cos()
    narrow = torch.where(moving, 0.35 * sigma.clamp_max(1.0), sigma)
    kernel = torch.exp(-(u / sigma).square() / 2 - (v / narrow.clamp_min(0.05)).square() / 2)
    kernel = torch.where(
        uniform(generator, 0, 1, batch, 1, 1, 1) < 0.45, (axis == 0) * (axis == 0).reshape(-1, 1) * 1.0, kernel
    )
    kernel = kernel / kernel.sum((2, 3), keepdim=True).clamp_min(1e-6)
    padded = F.pad(x.transpose(0, 1), (radius,) * 4, mode="reflect")
    return F.conv2d(padded, kernel, groups=batch).transpose(0, 1)


COARSE = 1.6
"""How much smaller a coarse view is before it is enlarged; divides every view size of the configuration."""


def see_pair(
    images: Tensor, view: tuple[int, int], limits: dict[str, Any], generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Two views of each canvas (B, S, S) in [0, 1]: images (B, 1, h, w), where they see the canvas, homographies.

    A share `limits["coarse"]` of the calls draws the views smaller and enlarges them, as a small photograph is
    enlarged before matching: its blur and noise grow with it.
    """
    pair = pair_homographies(len(images), images.shape[-1], view, limits, generator)
    coarse = float(torch.rand(1, device=generator.device, generator=generator)) < limits["coarse"]
    shown, inside = [], []
    for H in pair:
        if coarse:
            small = (round(view[0] / COARSE), round(view[1] / COARSE))
            shrink = torch.tensor(
                [
                    [small[1] / view[1], 0, small[1] / view[1] / 2 - 0.5],
                    [0, small[0] / view[0], small[0] / view[0] / 2 - 0.5],
                    [0, 0, 1],
                ]
            )
            image, seen = look(images, shrink.to(H) @ H, small)
            image = change_light(fill_outside(image, seen, generator), generator)
            shown.append(F.interpolate(image, size=view, mode="bilinear", align_corners=False))
            inside.append(F.interpolate(seen.float(), size=view, mode="nearest") > 0.5)
        else:
            image, seen = look(images, H, view)
            shown.append(change_light(fill_outside(image, seen, generator), generator))
            inside.append(seen)
    return shown, inside, list(pair)
