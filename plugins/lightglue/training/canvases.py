"""Canvases: random shapes laid over one another ("dead leaves"), drawn on the GPU, with the corners that stay visible.

Shapes are convex polygons and ellipses with sizes drawn from a power law, as occluding objects in photographs are.
Flat fills give scenes whose corners are known exactly; textured fills give rich scenes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EDGES = 8
"""Half-planes of a polygon; unused ones lie far away."""


class Canvases(NamedTuple):
    """A pool of N canvases."""

    images: Tensor
    """(N, S, S) uint8."""
    points: Tensor
    """(N, P, 2) float32: (x, y) in canvas pixels."""
    scores: Tensor
    """(N, P) float32: above 0 where the point counts."""


class Shapes(NamedTuple):
    """One shape for each of B canvases."""

    planes: Tensor
    """(B, EDGES, 3): a · x + b · y + c is the signed distance to an edge, negative inside."""
    conic: Tensor
    """(B, 6): coefficients of x², xy, y², x, y, 1; approximate signed distance to an ellipse."""
    round: Tensor
    """(B,) bool: the ellipse counts."""
    vertices: Tensor
    """(B, EDGES, 2)."""
    real: Tensor
    """(B, EDGES) bool: the vertex exists."""

    def distance(self, xy: Tensor) -> Tensor:
        """Approximate signed distance (B, M) of `xy` (M, 2) or (B, M, 2), negative inside."""
        xy = xy.expand(self.planes.shape[0], -1, -1)
        x, y = xy.unbind(-1)
        one = torch.ones_like(x)
        polygon = torch.bmm(self.planes, torch.stack((x, y, one), 1)).amax(1)
        ellipse = torch.bmm(self.conic.unsqueeze(1), torch.stack((x * x, x * y, y * y, x, y, one), 1)).squeeze(1)
        return torch.where(self.round.unsqueeze(1), ellipse, polygon)


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Uniform numbers on the generator's device."""
    return torch.empty(shape, device=generator.device).uniform_(low, high, generator=generator)


def random_shapes(batch: int, size: int, largest: float, generator: torch.Generator) -> Shapes:
    """One shape a canvas; radii follow r^-2 between 7 pixels and `largest` · size."""
    low, high = 7.0, largest * size
    radius = 1 / (1 / low + uniform(generator, 0, 1, batch) * (1 / high - 1 / low))
    centre = uniform(generator, 0, size, batch, 2)
    turn = uniform(generator, 0, 2 * torch.pi, batch)
    slim = torch.where(uniform(generator, 0, 1, batch) < 0.25, uniform(generator, 0.04, 0.4, batch), 1.0)
    sides = torch.randint(3, 7, (batch, 1), device=generator.device, generator=generator)

    step = torch.arange(EDGES, device=generator.device).expand(batch, -1)
    angle = (step + uniform(generator, -0.3, 0.3, batch, EDGES)) / sides * 2 * torch.pi
    away = uniform(generator, 0.6, 1.0, batch, EDGES) * radius.unsqueeze(1)
    used = step < sides
    # In the shape's own frame, then squeezed along one axis, turned and moved.
    normal = torch.stack((angle.cos(), angle.sin() / slim.unsqueeze(1)), -1)
    length = normal.norm(dim=-1, keepdim=True)
    normal, away = normal / length, away / length.squeeze(-1)
    cos, sin = turn.cos().unsqueeze(1), turn.sin().unsqueeze(1)
    a, b = normal[..., 0] * cos - normal[..., 1] * sin, normal[..., 0] * sin + normal[..., 1] * cos
    c = -(a * centre[:, :1] + b * centre[:, 1:]) - away
    planes = torch.where(used.unsqueeze(-1), torch.stack((a, b, c), -1), a.new_tensor([0.0, 0.0, -1e6]))

    vertices, real = _corners(planes, used, sides)
    small = radius * slim
    u = torch.stack((turn.cos(), turn.sin()), -1) / radius.unsqueeze(1)
    v = torch.stack((-turn.sin(), turn.cos()), -1) / small.unsqueeze(1)
    conic = _ellipse(u, v, centre) * (small / 2).unsqueeze(1)
    return Shapes(planes, conic, uniform(generator, 0, 1, batch) < 0.2, vertices, real)


def _corners(planes: Tensor, used: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Intersections of neighbouring edges, and which of them lie on the polygon."""
    step = torch.arange(EDGES, device=planes.device).expand(planes.shape[0], -1)
    following = torch.where(step + 1 < sides, step + 1, torch.zeros_like(step))
    other = planes.gather(1, following.unsqueeze(-1).expand(-1, -1, 3))
    point = torch.linalg.cross(planes, other)
    vertices = point[..., :2] / torch.where(point[..., 2:].abs() < 1e-6, 1e-6, point[..., 2:])
    homogeneous = F.pad(vertices, (0, 1), value=1.0)
    inside = torch.bmm(homogeneous, planes.transpose(1, 2)).amax(2) < 0.05
    # Nearly straight corners are no corners.
    straight = (planes[..., :2] * other[..., :2]).sum(-1) > 0.94
    return vertices, used & inside & ~straight


def _ellipse(u: Tensor, v: Tensor, centre: Tensor) -> Tensor:
    """Coefficients (B, 6) of |(u · (p - centre), v · (p - centre))|² - 1."""
    a = u[:, 0] ** 2 + v[:, 0] ** 2
    b = 2 * (u[:, 0] * u[:, 1] + v[:, 0] * v[:, 1])
    c = u[:, 1] ** 2 + v[:, 1] ** 2
    x, y = centre.unbind(1)
    return torch.stack((a, b, c, -2 * a * x - b * y, -2 * c * y - b * x, a * x * x + b * x * y + c * y * y - 1), 1)


def sample_textures(bank: Tensor, batch: int, size: int, generator: torch.Generator) -> Tensor:
    """(B, S, S): random textures of the bank, turned, scaled, mirrored at their edges, with random range."""
    index = torch.randint(len(bank), (batch,), device=bank.device, generator=generator)
    turn = uniform(generator, 0, 2 * torch.pi, batch)
    scale = torch.exp(uniform(generator, -0.5, 0.7, batch))
    flip = torch.sign(uniform(generator, -1, 1, batch))
    rows = torch.stack((turn.cos() * scale, -turn.sin() * scale, uniform(generator, -1, 1, batch)), 1)
    columns = torch.stack((turn.sin() * scale * flip, turn.cos() * scale * flip, uniform(generator, -1, 1, batch)), 1)
    grid = F.affine_grid(torch.stack((rows, columns), 1), [batch, 1, size, size], align_corners=True)
    image = F.grid_sample(bank[index].float().unsqueeze(1), grid, padding_mode="reflection", align_corners=True)
    low, high = uniform(generator, -0.1, 0.45, batch, 1, 1), uniform(generator, 0.55, 1.1, batch, 1, 1)
    invert = uniform(generator, 0, 1, batch, 1, 1) < 0.2
    image = low + image.squeeze(1) * (high - low)
    return torch.where(invert, 1 - image, image)


def draw(
    batch: int, size: int, layers: int, generator: torch.Generator, bank: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """B canvases: images (B, S, S) in [0, 1], corners (B, layers · EDGES, 2) and which are visible.

    Without a bank fills are flat or shaded and the corners are what can be seen; with one most fills are textures.
    """
    device = generator.device
    axis = torch.arange(size, device=device, dtype=torch.float32)
    pixels = torch.stack((axis.repeat(size), axis.repeat_interleave(size)), -1)
    image = _shades(batch, size, generator) if bank is None else sample_textures(bank, batch, size, generator)
    wanted = uniform(generator, 0, 1, batch) ** (1.0 if bank is None else 1.5) * layers
    points = torch.zeros(batch, 0, 2, device=device)
    seen = torch.zeros(batch, 0, dtype=torch.bool, device=device)
    for layer in range(layers):
        shapes = random_shapes(batch, size, 0.35 if bank is None else 0.4, generator)
        drawn = wanted > layer
        cover = (0.5 - shapes.distance(pixels)).clamp(0, 1).reshape(batch, size, size) * drawn[:, None, None]
        if bank is not None and layer % 3:
            fill = sample_textures(bank, batch, size, generator)
        else:
            fill = _shades(batch, size, generator)
        image = torch.lerp(image, fill, cover)
        if bank is None:
            hidden = shapes.distance(points) < 2.0 if points.shape[1] else seen
            seen = seen & ~(hidden & drawn.unsqueeze(1))
            visible = shapes.real & ~shapes.round.unsqueeze(1) & drawn.unsqueeze(1)
            points, seen = torch.cat((points, shapes.vertices), 1), torch.cat((seen, visible), 1)
    return image.clamp(0, 1), points, seen


def _shades(batch: int, size: int, generator: torch.Generator) -> Tensor:
    """(B, S, S): a grey level with a slight slope."""
    axis = torch.linspace(-0.5, 0.5, size, device=generator.device)
    slope = uniform(generator, -0.25, 0.25, 2, batch, 1, 1)
    return uniform(generator, 0, 1, batch, 1, 1) + slope[0] * axis + slope[1] * axis.reshape(-1, 1)


def checkerboards(batch: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """B flat checkerboards over shaded ground, with their inner corners; same result as `draw`."""
    device, cells = generator.device, 8
    side = uniform(generator, 0.05, 0.12, batch, 1) * size
    turn = uniform(generator, 0, 2 * torch.pi, batch, 1)
    centre = uniform(generator, 0.3, 0.7, batch, 2) * size
    axis = torch.arange(size, device=device, dtype=torch.float32)
    x, y = axis.repeat(size) - centre[:, :1], axis.repeat_interleave(size) - centre[:, 1:]
    u = ((x * turn.cos() + y * turn.sin()) / side).clamp(-cells / 2, cells / 2 - 1e-3)
    v = ((-x * turn.sin() + y * turn.cos()) / side).clamp(-cells / 2, cells / 2 - 1e-3)
    inside = (u.abs() < cells / 2 - 2e-3) & (v.abs() < cells / 2 - 2e-3)
    level = uniform(generator, 0, 1, batch, cells * cells)
    flat = ((u + cells / 2).floor() * cells + (v + cells / 2).floor()).long()
    plain = torch.where(((u.floor() + v.floor()) % 2) == 0, level[:, :1], level[:, 1:2])
    tone = torch.where(uniform(generator, 0, 1, batch, 1) < 0.5, plain, level.gather(1, flat))
    image = torch.where(
        inside.reshape(batch, size, size), tone.reshape(batch, size, size), _shades(batch, size, generator)
    )
    steps = torch.arange(cells + 1, device=device, dtype=torch.float32) - cells / 2
    gu, gv = steps.repeat(cells + 1) * side, steps.repeat_interleave(cells + 1) * side
    points = torch.stack((gu * turn.cos() - gv * turn.sin(), gu * turn.sin() + gv * turn.cos()), -1)
    points = points + centre.unsqueeze(1)
    return image.clamp(0, 1), points, torch.ones(points.shape[:2], dtype=torch.bool, device=device)


def corner_strength(image: Tensor, points: Tensor) -> Tensor:
    """Smaller eigenvalue of the structure tensor (5x5 window) of `image` (B, S, S) at `points` (B, P, 2): (B, P)."""
    x = F.pad(image.unsqueeze(1), (1, 1, 1, 1), mode="replicate")
    dx, dy = (x[..., 1:-1, 2:] - x[..., 1:-1, :-2]) / 2, (x[..., 2:, 1:-1] - x[..., :-2, 1:-1]) / 2
    parts = F.avg_pool2d(torch.cat((dx * dx, dy * dy, dx * dy), 1), 5, stride=1, padding=2)
    grid = points / (image.shape[-1] - 1) * 2 - 1
    xx, yy, xy = F.grid_sample(parts, grid.unsqueeze(1), align_corners=True).squeeze(2).unbind(1)
    return (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()


def corner_pool(count: int, size: int, batch: int, layers: int, points: int, generator: torch.Generator) -> Canvases:
    """Flat scenes with the corners that really show; one batch in six is checkerboards."""
    out = []
    for i, _ in enumerate(range(0, count, batch)):
        make = checkerboards(batch, size, generator) if i % 6 == 5 else draw(batch, size, min(layers, 24), generator)
        image, xy, seen = make
        inside = ((xy > 4) & (xy < size - 5)).all(-1)
        scores = corner_strength(image, xy) * (seen & inside)
        scores = torch.where(scores > 4e-4, scores, 0.0)
        best, index = scores.topk(min(points, scores.shape[1]), dim=1)
        xy = xy.gather(1, index.unsqueeze(-1).expand(-1, -1, 2))
        pad = points - best.shape[1]
        out.append(((image * 255).round().to(torch.uint8), F.pad(xy, (0, 0, 0, pad)), F.pad(best, (0, pad))))
    return Canvases(*(torch.cat(part)[:count] for part in zip(*out, strict=True)))


def rich_pool(count: int, size: int, batch: int, layers: int, bank: Tensor, generator: torch.Generator) -> Tensor:
    """(count, S, S) uint8: a quarter are single textures, the rest shapes over shapes."""
    out = []
    for i, _ in enumerate(range(0, count, batch)):
        if i % 4 == 0:
            image = sample_textures(bank, batch, size, generator)
        else:
            image = draw(batch, size, layers, generator, bank)[0]
        out.append((image.clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(out)[:count]
