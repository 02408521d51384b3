"""What drawn data sets share: shapes and patterns in the shape's own frame, clutter, covers, and their colors.

Shapes: M drawings, [H, W] pixels each.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["PATTERNS", "SHAPES", "class_names", "clutter", "color_apart", "covering", "figure", "painted"]

# Radius of the core of the shapes that have little or nothing at their center; 0.45 for the others.
CORE = {"ring": 0.75, "crescent": 0.6}


def _star(u: Tensor, v: Tensor) -> Tensor:
    # Five points: fold the angle into one half of a point, whose edge is a straight line.
    turn = torch.atan2(v, u).remainder(2 * math.pi / 5) - math.pi / 5
    turn = math.pi / 5 - turn.abs()
    r = torch.hypot(u, v)
    x, y = r * turn.cos(), r * turn.sin()
    tip, notch = 1.0, 0.42
    nx, ny = notch * math.sin(math.pi / 5), tip - notch * math.cos(math.pi / 5)
    return (tip * nx - x * nx - y * ny) / math.hypot(nx, ny)


# How far each point (u, v) lies inside a shape (negative: outside), in units of the shape's radius.
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": lambda u, v: 0.85 - torch.hypot(u, v),
    "ring": lambda u, v: 0.2 - (torch.hypot(u, v) - 0.75).abs(),
    "square": lambda u, v: 0.75 - torch.maximum(u.abs(), v.abs()),
    "triangle": lambda u, v: 0.5 - torch.maximum(v, u.abs() * (math.sqrt(3) / 2) - v / 2),
    "cross": lambda u, v: torch.minimum(0.26 - torch.minimum(u.abs(), v.abs()), 0.95 - torch.maximum(u.abs(), v.abs())),
    "star": _star,
    "crescent": lambda u, v: torch.minimum(0.9 - torch.hypot(u, v), torch.hypot(u - 0.45, v) - 0.68),
    "bar": lambda u, v: torch.minimum(0.95 - u.abs(), 0.3 - v.abs()),
    "corner": lambda u, v: torch.minimum(0.8 - torch.maximum(u.abs(), v.abs()), -torch.minimum(u, v) - 0.2),
    "bow": lambda u, v: torch.minimum((u.abs() - v.abs()) / math.sqrt(2) + 0.05, 0.9 - u.abs()),
}
SHAPES = tuple(DISTANCES)

# How far each point lies inside the second color of a pattern; inside: of the shape, core: the radius of its core.
_EDGES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "striped": lambda u, v, inside, core: (u * 2.2 * math.pi).sin() / (2.2 * math.pi),
    "checkered": lambda u, v, inside, core: (u * 2 * math.pi).sin() * (v * 2 * math.pi).sin() / (2 * math.pi),
    "cored": lambda u, v, inside, core: core - torch.hypot(u, v),
    "two-tone": lambda u, v, inside, core: v,
    "rimmed": lambda u, v, inside, core: 0.14 - inside,
    "dotted": lambda u, v, inside, core: (
        ((u * 2.4 * math.pi).cos() * (v * 2.4 * math.pi).cos() - 0.35) / (2.4 * math.pi)
    ),
    "tipped": lambda u, v, inside, core: -0.35 - u,
    "quartered": lambda u, v, inside, core: (u * v).sign() * torch.minimum(u.abs(), v.abs()),
}
PATTERNS = ("plain", "striped", "checkered", "cored", "two-tone", "rimmed", "dotted", "tipped", "shaded", "quartered")


def pattern_of(name: str, u: Tensor, v: Tensor, inside: Tensor, core: Tensor, pixel: Tensor) -> Tensor:
    """Share of the second color at each point, 0 to 1; edges are as sharp as the pixels allow."""
    if name == "plain":
        return torch.zeros_like(u)
    if name == "shaded":
        return ((u + 1) / 2).clamp(0, 1)
    return (_EDGES[name](u, v, inside, core) / pixel + 0.5).clamp(0, 1)


def class_names(num_classes: int) -> tuple[str, ...]:
    """What the classes are called: shapes, and above 10 classes patterned shapes."""
    if num_classes <= len(SHAPES):
        return SHAPES[:num_classes]
    return tuple(f"{PATTERNS[k // len(SHAPES)]} {SHAPES[k % len(SHAPES)]}" for k in range(num_classes))


def figure(kind: Tensor, pattern: Tensor, u: Tensor, v: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """A shape each: how far it covers each pixel, and the share of its second color there; [M, H, W], 0 to 1.

    Args:
        kind: [M], which of ``SHAPES``. pattern: [M], which of ``PATTERNS``.
        u, v: [M, H, W], the pixels' centers in the shape's own frame, whose unit is its radius.
        pixel: [M, 1, 1], the side of a pixel there.
    """
    inside = torch.empty_like(u)
    for k in range(len(SHAPES)):
        at = (kind == k).nonzero()[:, 0]
        inside[at] = DISTANCES[SHAPES[k]](u[at], v[at])
    core = torch.tensor([CORE.get(name, 0.45) for name in SHAPES])[kind].view(-1, 1, 1)
    second = torch.empty_like(inside)
    for k in range(len(PATTERNS)):
        at = (pattern == k).nonzero()[:, 0]
        second[at] = pattern_of(PATTERNS[k], u[at], v[at], inside[at], core[at], pixel[at])
    return (inside / pixel + 0.5).clamp(0, 1), second


def clutter(base: Tensor, coarse: Tensor, strength: float, lines: Tensor, grid: Tensor) -> Tensor:
    """A ground [M, 3, H, W]: smooth clutter around a color, and thin lines.

    Args:
        base: [M, 3]. coarse: [M, 3, n, n] in [-1, 1], which is made smooth. lines: see :func:`distractors`.
        grid: [W], the pixels' centers in [-1, 1].
    """
    smooth = F.interpolate(coarse, (len(grid), len(grid)), mode="bicubic", align_corners=True)
    return distractors(base[:, :, None, None] + strength * smooth, grid, lines)


def color_apart(base: Tensor, direction: Tensor, distance: float) -> Tensor:
    """[M, 3] colors at a distance from ``base``, on the side where there is room for it."""
    step = direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-6) * distance
    over = base + step
    return torch.where((over < 0) | (over > 1), base - step, over).clamp(0, 1)


def painted(base: Tensor, color: Tensor, other: Tensor, second: Tensor, strength: Tensor) -> Tensor:
    """[M, 3, H, W]: two colors, ``other`` where ``second`` says so, both brought nearer to the ground's.

    Args:
        base, color, other: [M, 3]. second: [M, H, W]. strength: [M], 1 (colors as they are) to 0 (those of ``base``).
    """
    paint = torch.lerp(color[:, :, None, None], other[:, :, None, None], second.unsqueeze(1))
    plain = base[:, :, None, None]
    return plain + strength.view(-1, 1, 1, 1) * (paint - plain)


def distractors(image: Tensor, grid: Tensor, numbers: Tensor) -> Tensor:
    """Lay thin lines across the background: numbers [M, n, 8] in [0, 1] give each line its place and color."""
    for line in numbers.unbind(1):
        turn = line[:, 0] * math.pi
        across = grid.view(1, 1, -1) * turn.cos().view(-1, 1, 1) + grid.view(1, -1, 1) * turn.sin().view(-1, 1, 1)
        width = (0.04 + 0.06 * line[:, 2]).view(-1, 1, 1)
        near = ((width - (across - (line[:, 1] * 1.6 - 0.8).view(-1, 1, 1)).abs()) * len(grid) / 2 + 0.5).clamp(0, 1)
        color = (0.2 + 0.6 * line[:, 3:6])[:, :, None, None]
        image = torch.lerp(image, color.expand_as(image), 0.3 * near.unsqueeze(1))
    return image


def covering(
    u: Tensor, v: Tensor, mask: Tensor, pixel: Tensor, angle: Tensor, share: Tensor, reach: float = 1.2
) -> Tensor:
    """A plank [M, H, W] that comes in from one side and covers just ``share`` [M] of the shape's area.

    Args:
        reach: how far it reaches from the shape's center, in units of its radius.
    """
    along = u * angle.cos().view(-1, 1, 1) + v * angle.sin().view(-1, 1, 1)
    order = along.flatten(1).sort(dim=1, descending=True)
    area = mask.flatten(1).gather(1, order.indices).cumsum(1)
    # The edge lies where the area already passed is the wanted share of all.
    place = (area < share.unsqueeze(1) * area[:, -1:]).sum(1, keepdim=True).clamp_max(area.shape[1] - 1)
    edge = order.values.gather(1, place).unsqueeze(2)
    plank = ((along - edge) / pixel + 0.5).clamp(0, 1) * (torch.hypot(u, v) < reach)
    return torch.where((share > 0).view(-1, 1, 1), plank, torch.zeros_like(plank))
