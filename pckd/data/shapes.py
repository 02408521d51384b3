"""Drawn shapes: a data set that needs no files, and knows how hard each of its images is."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pckd.data.drawing import PATTERNS, SHAPES, class_names, clutter, color_apart, covering, figure, painted
from pckd.data.views import seeded
from pckd.data.vision import crop_padding
from registry import DATASETS, DataSplit, UserError

__all__ = ["PATTERNS", "SHAPES", "Drawing", "draw", "shapes"]

_MEAN = (0.50, 0.50, 0.50)
_STD = (0.16, 0.16, 0.16)

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
    labels: bool = True,
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
        labels: False hides labels and classes, to distill as from any pictures.

    Raises:
        UserError: an option out of its range.
    """
    for name, count in (("train_size", train_size), ("test_size", test_size)):
        if count < 1:
            raise UserError(f"shapes: {name}={count}: it must be at least 1")
    drawing = draw(
        train_size if train else test_size,
        num_classes=num_classes,
        image_size=image_size,
        seed=seed,
        stream=0 if train else 1,
        noise=noise,
        occlusion=occlusion,
        contrast=contrast,
        color_cue=color_cue,
        label_noise=label_noise if train else 0.0,
    )
    return DataSplit(
        drawing.images,
        drawing.labels if labels else torch.full_like(drawing.labels, -1),
        class_names(num_classes) if labels else (),
        _MEAN,
        _STD,
        difficulty=drawing.difficulty,
        padding=crop_padding(image_size),
        name=f"shapes {'train' if train else 'test'}",
    )


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
    options = {
        "noise": noise,
        "occlusion": occlusion,
        "contrast": contrast,
        "color_cue": color_cue,
        "label_noise": label_noise,
    }
    for name, value in options.items():
        most = 0.9 if name in ("occlusion", "label_noise") else 1.0
        if not 0 <= value <= most:
            raise UserError(f"shapes: {name}={value}: it must be 0 to {most:g}")
    pieces = [
        _piece(
            torch.arange(first, min(first + _PIECE, count)) % num_classes,
            image_size,
            num_classes > len(SHAPES),
            seeded(seed, stream, 0, first),
            noise,
            occlusion,
            contrast,
            color_cue,
        )
        for first in range(0, count, _PIECE)
    ]
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
    noise: float,
    occlusion: float,
    contrast: float,
    color_cue: float,
) -> Drawing:
    full = _PIECE

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        # Always drawn for a full piece, so that image i does not depend on the number of images.
        return torch.rand(full, *shape, generator=generator)[: len(labels)] * (high - low) + low

    kind = labels % len(SHAPES)
    any_pattern = torch.randint(0, len(PATTERNS), (full,), generator=generator)[: len(labels)]
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

    mask, second = figure(kind, pattern, u, v, pixel)

    # Colors: the background is smooth clutter around a mean; the shape's colors stand off from it.
    base = uniform(0.3, 0.7, 3)
    coarse = uniform(-1, 1, 3, 5, 5)
    image = clutter(base, coarse, 0.1, uniform(0, 1, 2, 8), grid)
    color = color_apart(base, uniform(-1, 1, 3), 0.65)
    # A stream of its own, so that the rest of an image is the same with and without the cue.
    chance = torch.rand(full, generator=seeded(generator.initial_seed(), 2))[: len(labels)]
    own = _own_color(kind) + 0.1 * (color - base)
    color = torch.where((chance < color_cue)[:, None], own.clamp(0, 1), color)
    other = color + 0.35 * (color_apart(base, uniform(-1, 1, 3), 0.65) - color)
    paint = painted(base, color, other, second, strength)
    image = torch.lerp(image, paint, mask.unsqueeze(1))

    cover = covering(u, v, mask, pixel, uniform(0, 2 * math.pi), covered)
    plank = color_apart(base, uniform(-1, 1, 3), 0.15)[:, :, None, None]
    image = torch.lerp(image, plank.expand_as(image), cover.unsqueeze(1))
    grain = torch.randn(full, 3, size, size, generator=generator)[: len(labels)]
    image = image + sigma.view(-1, 1, 1, 1) * grain
    pixels = (image * 255).round().clamp(0, 255).byte()
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return Drawing(pixels, labels, labels, sigma, covered, strength, levels.norm(dim=1).clamp(0, 1))


def _own_color(kind: Tensor) -> Tensor:
    """[M, 3] the color that goes with a shape: hues around the circle."""
    hue = kind / len(SHAPES) * 2 * math.pi
    return torch.stack([0.5 + 0.45 * (hue + third).cos() for third in (0.0, -2 * math.pi / 3, 2 * math.pi / 3)], dim=1)
