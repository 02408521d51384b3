"""Drawn shapes: a data set that needs no files, and knows how hard each of its images is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pckd.data.views import seeded
from pckd.data.vision import crop_padding
from registry import DATASETS, DataSplit, UserError

__all__ = ["PATTERNS", "SHAPES", "Drawing", "draw", "shapes"]

# Radius of the core of the shapes that have little or nothing at their center; 0.45 for the others.
_CORE = {"ring": 0.75, "crescent": 0.6}

_MEAN, _STD = (0.50,) * 3, (0.16,) * 3

# Images are drawn in pieces of this many, each with a generator of its own: little memory, and image i does not
# depend on how many others there are.
_PIECE = 500


class Drawing(NamedTuple):
    """Images and all that is known of them."""

    images: Tensor
    """uint8 [M, 3, H, W]."""
    labels: Tensor
    """int64 [M], as the loader shows them: some are wrong where there is label noise."""
    true_labels: Tensor
    """int64 [M], what was drawn."""
    noise: Tensor
    """[M], standard deviation of the pixel noise, in units of full scale."""
    occlusion: Tensor
    """[M], share of the shape's area that is covered."""
    contrast: Tensor
    """[M], how far the shape's color stands out, from the option ``contrast`` (faint) to 1 (full)."""
    difficulty: Tensor
    """[M], 0 (clean) to 1."""


@DATASETS.register("shapes", drawn=True)
def shapes(
    root: str | None = None,
    train: bool = True,
    *,
    num_classes: int = 10,
    image_size: int = 32,
    train_size: int = 4000,
    test_size: int = 1000,
    seed: int = 0,
    noise: float = 0.15,
    occlusion: float = 0.4,
    contrast: float = 0.5,
    color_cue: float = 0.0,
    label_noise: float = 0.0,
) -> DataSplit:
    """Colored, textured shapes on clutter, drawn from a seed, each with a known difficulty.

    Up to 10 classes are shapes, in any color and pattern; above that a class is a shape with a pattern ("striped
    ring"). No class is a rotation or a mirror image of another. Position, size and colors are random; shapes stand
    upright, give or take 22 degrees, as things do in photographs.

    Each image has a level of noise, occlusion and faintness in [0, 1], and its difficulty is the root of the sum of
    their squares. Difficulty is spread evenly from 0 to 1, except that an image with a wrong label has difficulty 1.

    Args:
        root: ignored.
        train: the training split, or else the test split, which has other images and no wrong labels.
        num_classes: 2 to 100.
        image_size: pixels per side, at least 8.
        train_size: images of the training split.
        test_size: images of the test split.
        seed: of everything random.
        noise: standard deviation of the pixel noise at level 1, in units of full scale; 0 turns noise off.
        occlusion: share of the shape that is covered at level 1; 0 turns occlusion off.
        contrast: of the shape's color at level 1, where level 0 has contrast 1; 1 turns faintness off.
        color_cue: share of the images whose shape has its class's own color, which is quickly learned, as the colors
            of things in photographs are; the others have any color. Not part of the difficulty.
        label_noise: share of the training images whose label is wrong.

    Raises:
        UserError: an option out of its range.
    """
    for name, count in (("train_size", train_size), ("test_size", test_size)):
        if count < 1:
            raise UserError(f"shapes: {name}={count}: it must be at least 1")
    options: dict[str, Any] = {"num_classes": num_classes, "image_size": image_size, "seed": seed}
    options |= {"noise": noise, "occlusion": occlusion, "contrast": contrast, "color_cue": color_cue}
    if train:
        drawing = draw(train_size, stream=0, label_noise=label_noise, **options)
    else:
        drawing = draw(test_size, stream=1, **options)
    about: dict[str, Any] = {"padding": crop_padding(image_size), "name": f"shapes {'train' if train else 'test'}"}
    classes, difficulty = class_names(num_classes), drawing.difficulty
    return DataSplit(drawing.images, drawing.labels, classes, _MEAN, _STD, difficulty, **about)


def class_names(num_classes: int) -> tuple[str, ...]:
    """What the classes are called: shapes, and above 10 classes patterned shapes."""
    if num_classes <= len(SHAPES):
        return SHAPES[:num_classes]
    return tuple(f"{PATTERNS[k // len(SHAPES)]} {SHAPES[k % len(SHAPES)]}" for k in range(num_classes))


def draw(
    count: int,
    *,
    num_classes: int = 10,
    image_size: int = 32,
    seed: int = 0,
    stream: int = 0,
    noise: float = 0.15,
    occlusion: float = 0.4,
    contrast: float = 0.5,
    color_cue: float = 0.0,
    label_noise: float = 0.0,
) -> Drawing:
    """Draw ``count`` images; ``stream`` separates splits of one seed, the other arguments are those of :func:`shapes`.

    Image i is the same whatever ``count`` is. Its class, position, colors and levels do not depend on ``noise``,
    ``occlusion``, ``contrast`` and ``label_noise`` as long as none of these is turned off or on.
    """
    if not 2 <= num_classes <= len(SHAPES) * len(PATTERNS):
        raise UserError(f"shapes: num_classes={num_classes}: it must be 2 to {len(SHAPES) * len(PATTERNS)}")
    if image_size < 8:
        raise UserError(f"shapes: image_size={image_size}: it must be at least 8")
    levels = {"noise": noise, "occlusion": occlusion, "contrast": contrast, "color_cue": color_cue}
    for name, value in {**levels, "label_noise": label_noise}.items():
        most = 0.9 if name in ("occlusion", "label_noise") else 1.0
        if not 0 <= value <= most:
            raise UserError(f"shapes: {name}={value}: it must be 0 to {most:g}")
    pieces = []
    for first in range(0, count, _PIECE):
        labels = torch.arange(first, min(first + _PIECE, count)) % num_classes
        patterned, generator = num_classes > len(SHAPES), seeded(seed, stream, 0, first)
        pieces.append(_piece(labels, image_size, patterned, generator, **levels))
    drawing = Drawing(*(torch.cat(parts) for parts in zip(*pieces, strict=True)))
    wrong = round(label_noise * count)
    if not wrong:
        return drawing
    generator = seeded(seed, stream, 1, 0)
    at = torch.randperm(count, generator=generator)[:wrong]
    labels, difficulty = drawing.labels.clone(), drawing.difficulty.clone()
    labels[at] = (labels[at] + torch.randint(1, num_classes, (wrong,), generator=generator)) % num_classes
    difficulty[at] = 1.0
    return drawing._replace(labels=labels, difficulty=difficulty)


def _piece(
    labels: Tensor,
    size: int,
    patterned: bool,
    generator: torch.Generator,
    *,
    noise: float,
    occlusion: float,
    contrast: float,
    color_cue: float,
) -> Drawing:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        # Always drawn for a full piece, so that image i does not depend on the number of images.
        return torch.rand(_PIECE, *shape, generator=generator)[: len(labels)] * (high - low) + low

    kind = labels % len(SHAPES)
    any_pattern = torch.randint(0, len(PATTERNS), (_PIECE,), generator=generator)[: len(labels)]
    pattern = labels // len(SHAPES) if patterned else any_pattern

    # Three levels that lie on a sphere around "clean": difficulty is its radius.
    active = torch.tensor([noise > 0, occlusion > 0, contrast < 1]).float()
    toward = (uniform(0, 1, 3) + 1e-3) ** 1.5 * active
    toward = toward / toward.norm(dim=1, keepdim=True).clamp_min(1e-6)
    levels = uniform(0, 1, 1) * toward
    sigma, covered, strength = levels[:, 0] * noise, levels[:, 1] * occlusion, 1 - levels[:, 2] * (1 - contrast)

    # Pixel centers in the shape's own frame, whose unit is the shape's radius.
    grid = (torch.arange(size) + 0.5) / size * 2 - 1
    radius = uniform(0.55, 0.85)
    angle = uniform(-math.pi / 8, math.pi / 8)
    center = uniform(-1, 1, 2) * (0.97 - radius).unsqueeze(1)
    x = (grid.view(1, 1, -1) - center[:, :1, None]) / radius.view(-1, 1, 1)
    y = (grid.view(1, -1, 1) - center[:, 1:, None]) / radius.view(-1, 1, 1)
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    u, v = x * cos + y * sin, y * cos - x * sin
    pixel = (2 / size / radius).view(-1, 1, 1)

    inside = torch.empty(len(labels), size, size)
    for k in range(len(SHAPES)):
        at = (kind == k).nonzero()[:, 0]
        inside[at] = _DISTANCES[SHAPES[k]](u[at], v[at])
    mask = (inside / pixel + 0.5).clamp(0, 1)
    core = torch.tensor([_CORE.get(name, 0.45) for name in SHAPES])[kind].view(-1, 1, 1)
    second = torch.empty_like(inside)
    for k in range(len(PATTERNS)):
        at = (pattern == k).nonzero()[:, 0]
        second[at] = _pattern(PATTERNS[k], u[at], v[at], inside[at], core[at], pixel[at])

    # Colors: the background is smooth clutter around a mean; the shape's colors stand off from it.
    base = uniform(0.3, 0.7, 3)
    clutter = F.interpolate(uniform(-1, 1, 3, 5, 5), (size, size), mode="bicubic", align_corners=True)
    image = base[:, :, None, None] + 0.1 * clutter
    image = _distractors(image, grid, uniform(0, 1, 2, 8))
    color = _color(base, uniform(-1, 1, 3), 0.65)
    # A stream of its own, so that the rest of an image is the same with and without the cue.
    chance = torch.rand(_PIECE, generator=seeded(generator.initial_seed(), 2))[: len(labels)]
    own = _own_color(kind) + 0.1 * (color - base)
    color = torch.where((chance < color_cue)[:, None], own.clamp(0, 1), color)
    other = color + 0.35 * (_color(base, uniform(-1, 1, 3), 0.65) - color)
    paint = torch.lerp(color[:, :, None, None], other[:, :, None, None], second.unsqueeze(1))
    plain = base[:, :, None, None]
    paint = plain + strength.view(-1, 1, 1, 1) * (paint - plain)
    image = torch.lerp(image, paint, mask.unsqueeze(1))

    cover = _cover(u, v, mask, pixel, uniform(0, 2 * math.pi), covered)
    plank = _color(base, uniform(-1, 1, 3), 0.15)[:, :, None, None]
    image = torch.lerp(image, plank.expand_as(image), cover.unsqueeze(1))
    grain = torch.randn(_PIECE, 3, size, size, generator=generator)[: len(labels)]
    image = image + sigma.view(-1, 1, 1, 1) * grain
    pixels = (image * 255).round().clamp(0, 255).byte()
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return Drawing(pixels, labels, labels, sigma, covered, strength, levels.norm(dim=1).clamp(0, 1))


def _own_color(kind: Tensor) -> Tensor:
    """[M, 3] the color that goes with a shape: hues around the circle."""
    hue = kind / len(SHAPES) * 2 * math.pi
    return torch.stack([0.5 + 0.45 * (hue + third).cos() for third in (0.0, -2 * math.pi / 3, 2 * math.pi / 3)], dim=1)


def _color(base: Tensor, direction: Tensor, distance: float) -> Tensor:
    """[M, 3] colors at a distance from ``base``, on the side where there is room for it."""
    step = direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-6) * distance
    over = base + step
    return torch.where((over < 0) | (over > 1), base - step, over).clamp(0, 1)


def _distractors(image: Tensor, grid: Tensor, numbers: Tensor) -> Tensor:
    """Lay thin lines across the background: numbers [M, 2, 8] in [0, 1] give each line its place and color."""
    for line in numbers.unbind(1):
        turn = line[:, 0] * math.pi
        across = grid.view(1, 1, -1) * turn.cos().view(-1, 1, 1) + grid.view(1, -1, 1) * turn.sin().view(-1, 1, 1)
        width = (0.04 + 0.06 * line[:, 2]).view(-1, 1, 1)
        near = ((width - (across - (line[:, 1] * 1.6 - 0.8).view(-1, 1, 1)).abs()) * len(grid) / 2 + 0.5).clamp(0, 1)
        color = (0.2 + 0.6 * line[:, 3:6])[:, :, None, None]
        image = torch.lerp(image, color.expand_as(image), 0.3 * near.unsqueeze(1))
    return image


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
_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
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
SHAPES = tuple(_DISTANCES)

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


def _pattern(pattern: str, u: Tensor, v: Tensor, inside: Tensor, core: Tensor, pixel: Tensor) -> Tensor:
    """Share of the second color at each point, 0 to 1; edges are as sharp as the pixels allow."""
    if pattern == "plain":
        return torch.zeros_like(u)
    if pattern == "shaded":
        return ((u + 1) / 2).clamp(0, 1)
    return (_EDGES[pattern](u, v, inside, core) / pixel + 0.5).clamp(0, 1)


def _cover(u: Tensor, v: Tensor, mask: Tensor, pixel: Tensor, angle: Tensor, share: Tensor) -> Tensor:
    """A plank [M, H, W] that comes in from one side and covers just ``share`` [M] of the shape's area."""
    along = u * angle.cos().view(-1, 1, 1) + v * angle.sin().view(-1, 1, 1)
    order = along.flatten(1).sort(dim=1, descending=True)
    area = mask.flatten(1).gather(1, order.indices).cumsum(1)
    # The edge lies where the area already passed is the wanted share of all.
    place = (area < share.unsqueeze(1) * area[:, -1:]).sum(1, keepdim=True).clamp_max(area.shape[1] - 1)
    edge = order.values.gather(1, place).unsqueeze(2)
    plank = ((along - edge) / pixel + 0.5).clamp(0, 1) * (torch.hypot(u, v) < 1.2)
    return torch.where((share > 0).view(-1, 1, 1), plank, torch.zeros_like(plank))
