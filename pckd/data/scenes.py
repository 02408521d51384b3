"""Drawn scenes: several shapes an image, with boxes, masks and the true difficulty of each; needs no files."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pckd.data.annotated import AnnotatedSplit, Annotation
from pckd.data.drawing import PATTERNS, SHAPES, class_names, clutter, color_apart, covering, figure, painted
from pckd.data.views import seeded
from registry import DATASETS, UserError

__all__ = ["scenes"]

_MEAN, _STD = (0.50,) * 3, (0.15,) * 3
# Images are drawn in pieces of this many, each with a generator of its own, so that image i does not depend on how
# many others there are.
_PIECE = 100
_TRIES = 12
"""Places that are tried for an object."""
_APART = 0.65
"""Least distance of two objects, in units of the sum of their radii."""
_LEAST_SEEN = 0.5
"""Share of each object that is seen: another one that would cover more of it is left out."""
_REACH = 1.4
"""Radius of a circle that holds every shape, in units of the shape's own."""


@DATASETS.register("scenes", drawn=True, task="detection")
def scenes(
    root: str | None = None,
    train: bool = True,
    *,
    num_classes: int = 10,
    image_size: int = 128,
    train_size: int = 1000,
    test_size: int = 300,
    seed: int = 0,
    objects: int = 6,
    smallest: float = 0.09,
    largest: float = 0.22,
    noise: float = 0.08,
    occlusion: float = 0.4,
    contrast: float = 0.45,
) -> AnnotatedSplit:
    """Colored, textured shapes on clutter, one to six an image, drawn from a seed, with boxes and masks.

    Up to 10 classes are shapes, in any color and pattern; above that a class is a shape with a pattern. Shapes stand
    upright, give or take 22 degrees, and may hide a part of each other. Boxes and masks are of what is seen.

    The difficulty of each object is known by three aspects, 0 (easy) to 1: ``size`` (1 for the smallest radius, by
    its logarithm), ``contrast`` (1 for the faintest), ``occlusion`` (the share of its area that is not seen).

    Args:
        root: ignored.
        train: the training split, or else the test split, which has other images.
        num_classes: 1 to 100.
        image_size: pixels per side, at least 32.
        train_size: images of the training split.
        test_size: images of the test split.
        seed: of everything random.
        objects: the most an image has.
        smallest: radius of the smallest shapes, as a share of the image's side.
        largest: radius of the largest ones, likewise.
        noise: standard deviation of the noisiest image's pixel noise, in units of full scale.
        occlusion: share of a shape that a plank in front of it covers at most; 0 leaves planks out.
        contrast: of the faintest shape's color.

    Raises:
        UserError: an option out of its range.
    """
    least = 2.5 / image_size if image_size > 0 else 1.0
    for name, value, low, high in (
        ("num_classes", num_classes, 1, len(SHAPES) * len(PATTERNS)),
        ("image_size", image_size, 32, 4096),
        ("train_size", train_size, 1, math.inf),
        ("test_size", test_size, 1, math.inf),
        ("objects", objects, 1, 100),
        ("smallest", smallest, least, 0.45),
        ("largest", largest, smallest, 0.45),
        ("noise", noise, 0, 1),
        ("occlusion", occlusion, 0, 0.5),
        ("contrast", contrast, 0, 1),
    ):
        if not low <= value <= high:
            raise UserError(f"scenes: {name}={value}: it must be {low:g} to {high:g}")
    count = train_size if train else test_size
    pieces = [
        _piece(
            min(_PIECE, count - first),
            num_classes,
            image_size,
            objects,
            (math.log(smallest), math.log(largest)),
            noise,
            occlusion,
            contrast,
            seeded(seed, 0 if train else 1, first),
        )
        for first in range(0, count, _PIECE)
    ]
    difficulty = torch.tensor([levels for piece in pieces for levels in piece[3]]).view(-1, 3)
    return AnnotatedSplit(
        torch.cat([piece[0] for piece in pieces]),
        tuple(annotation for piece in pieces for annotation in piece[2]),
        class_names(num_classes),
        torch.cat([piece[1] for piece in pieces]),
        mean=_MEAN,
        std=_STD,
        difficulty=dict(zip(("size", "contrast", "occlusion"), difficulty.unbind(1), strict=True)),
        name=f"scenes {'train' if train else 'test'}",
    )


def _piece(
    count: int,
    num_classes: int,
    size: int,
    most: int,
    log_radius: tuple[float, float],
    noise: float,
    occlusion: float,
    contrast: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, list[Annotation], list[list[float]]]:
    """Images, masks and annotations of ``count`` scenes, and the levels of difficulty of their objects."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        # Always drawn for a full piece, so that image i does not depend on the number of images.
        return torch.rand(_PIECE, *shape, generator=generator)[:count] * (high - low) + low

    def choice(options: int, *shape: int) -> Tensor:
        return torch.randint(options, (_PIECE, *shape), generator=generator)[:count]

    grid = (torch.arange(size) + 0.5) / size * 2 - 1
    base = uniform(0.3, 0.7, 3)
    ground = clutter(base, uniform(-1, 1, 3, 9, 9), 0.12, uniform(0, 1, 6, 8), grid)
    wanted = 1 + choice(most)
    labels, pattern = choice(num_classes, most), choice(len(PATTERNS), most)
    if num_classes > len(SHAPES):
        pattern = labels // len(SHAPES)
    small = uniform(0, 1, most)
    radius = (log_radius[1] - small * (log_radius[1] - log_radius[0])).exp() * size
    center, placed = _places(uniform(0, 1, most, _TRIES, 2), radius, size, wanted)
    angle, faint = uniform(-math.pi / 8, math.pi / 8, most), uniform(0, 1, most) ** 2
    directions, side = uniform(-1, 1, most, 3, 3), uniform(0, 2 * math.pi, most)
    # Half of the objects have a plank in front of them.
    covered = (uniform(-1, 1, most).clamp_min(0) * occlusion)[placed]
    base_of = base[placed.nonzero()[:, 0]]

    # Each object is drawn on a patch of its own, and these are laid on the images one after the other.
    half = math.ceil(_REACH * math.exp(log_radius[1]) * size) + 1
    radius, center, angle = radius[placed], center[placed], angle[placed]
    corner = center.floor().long() - half
    x, y = ((torch.arange(2 * half) + 0.5 + (corner - center)[:, k, None]) / radius[:, None] for k in (0, 1))
    x, y, cos, sin = x[:, None], y[:, :, None], angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    u, v = x * cos + y * sin, y * cos - x * sin
    mask, second = figure(labels[placed] % len(SHAPES), pattern[placed], u, v, (1 / radius).view(-1, 1, 1))
    toward = directions[placed].unbind(1)
    color = color_apart(base_of, toward[0], 0.65)
    other = color + 0.35 * (color_apart(base_of, toward[1], 0.65) - color)
    paint = painted(base_of, color, other, second, 1 - faint[placed] * (1 - contrast))
    plank = covering(u, v, mask, (1 / radius).view(-1, 1, 1), side[placed], covered, _REACH)
    plank_color = color_apart(base_of, toward[2], 0.15)[:, :, None, None]

    image = pad(ground, (2 * half,) * 4)
    # The number of the object that is seen at each pixel; 0 where none is.
    owner = torch.zeros(count, *image.shape[2:], dtype=torch.int64)
    there: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for k, i in enumerate(placed.nonzero()[:, 0].tolist()):
        left, top = (corner[k] + 2 * half).tolist()
        window = (..., slice(top, top + 2 * half), slice(left, left + 2 * half))
        before, shape = owner[i][window].clone(), mask[k] > 0.5
        owner[i][window][shape] = k + 1
        owner[i][window][plank[k] > 0.5] = 0
        seen = owner[i][_inner(2 * half, size)].flatten().bincount(minlength=k + 2)
        with_this = [*there[i], (k, int(shape.sum()))]
        if any(seen[number + 1] < _LEAST_SEEN * area for number, area in with_this):
            owner[i][window] = before
            continue
        there[i] = with_this
        patch = torch.lerp(image[i][window], paint[k], mask[k])
        image[i][window] = torch.lerp(patch, plank_color[k].expand_as(patch), plank[k])

    image, owner = image[_inner(2 * half, size)], owner[_inner(2 * half, size)]
    image = image + uniform(0, noise, 1, 1, 1) * torch.randn(_PIECE, 3, size, size, generator=generator)[:count]
    kinds = labels[placed] + 1
    masks = torch.cat([kinds.new_zeros(1), kinds])[owner].byte()
    annotations, levels = [], []
    for i in range(count):
        boxes, areas = [], []
        for k, area in there[i]:
            here = owner[i] == k + 1
            across, down = here.any(0).nonzero()[:, 0].tolist(), here.any(1).nonzero()[:, 0].tolist()
            boxes.append([across[0], down[0], across[-1] + 1, down[-1] + 1])
            areas.append(int(here.sum()))
            levels.append([float(small[placed][k]), float(faint[placed][k]), 1 - areas[-1] / area])
        which = [int(kinds[k]) for k, _ in there[i]]
        annotations.append(Annotation.of(boxes, which, area=torch.tensor(areas).float()))
    pictures = (image * 255).round().clamp(0, 255).byte().contiguous(memory_format=torch.channels_last)
    return pictures, masks, annotations, levels


def _inner(margin: int, size: int) -> tuple[Any, ...]:
    """What is left of images without a margin on each side."""
    return (..., slice(margin, margin + size), slice(margin, margin + size))


def _places(tries: Tensor, radius: Tensor, size: int, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where the objects lie that find a place: centers [M, n, 2] in pixels, and which do, [M, n].

    Args:
        tries: [M, n, tries, 2] in [0, 1]: places, of which each object takes the first that is far enough from those
            before it. radius: [M, n]. wanted: [M], objects an image.
    """
    count, most = radius.shape
    center, placed = torch.zeros(count, most, 2), torch.zeros(count, most, dtype=torch.bool)
    for k in range(most):
        free = wanted > k
        for place in tries[:, k].unbind(1):
            at = radius[:, k, None] + place * (size - 2 * radius[:, k, None])
            apart = (center - at[:, None]).norm(dim=2) > _APART * (radius + radius[:, k, None])
            fits = free & (apart | ~placed).all(1)
            center[:, k] = torch.where(fits[:, None], at, center[:, k])
            placed[:, k] |= fits
            free &= ~fits
    return center, placed
