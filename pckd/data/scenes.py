"""Drawn scenes: several shapes an image, with boxes, masks and the true difficulty of each; needs no files."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import masks_to_boxes

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


_EDGE = torch.tensor([0, 0, 1, 1])
"""From the last pixel of an object to the edge of its box."""


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
    count, stream = (train_size, 0) if train else (test_size, 1)
    levels = {"noise": noise, "occlusion": occlusion, "contrast": contrast}
    pieces = []
    for first in range(0, count, _PIECE):
        generator, here = seeded(seed, stream, first), min(_PIECE, count - first)
        pieces.append(_piece(here, num_classes, image_size, objects, (smallest, largest), generator, **levels))
    images, masks, annotations, known = zip(*pieces, strict=True)
    difficulty = torch.tensor([values for piece in known for values in piece]).view(-1, 3)
    return AnnotatedSplit(
        torch.cat(images),
        tuple(annotation for piece in annotations for annotation in piece),
        class_names(num_classes),
        torch.cat(masks),
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
    radii: tuple[float, float],
    generator: torch.Generator,
    *,
    noise: float,
    occlusion: float,
    contrast: float,
) -> tuple[Tensor, Tensor, list[Annotation], list[list[float]]]:
    """Images, masks and annotations of ``count`` scenes, and the difficulty of their objects."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        # Always drawn for a full piece, so that image i does not depend on the number of images.
        return torch.rand(_PIECE, *shape, generator=generator)[:count] * (high - low) + low

    def choice(options: int, *shape: int) -> Tensor:
        return torch.randint(options, (_PIECE, *shape), generator=generator)[:count]

    base = uniform(0.3, 0.7, 3)
    grid = (torch.arange(size) + 0.5) / size * 2 - 1
    ground = clutter(base, uniform(-1, 1, 3, 9, 9), 0.12, uniform(0, 1, 6, 8), grid)
    wanted = 1 + choice(most)
    labels, pattern = choice(num_classes, most), choice(len(PATTERNS), most)
    if num_classes > len(SHAPES):
        pattern = labels // len(SHAPES)
    small = uniform(0, 1, most)
    radius = (math.log(radii[1]) - small * math.log(radii[1] / radii[0])).exp() * size
    center, placed = _places(uniform(0, 1, most, _TRIES, 2), radius, size, wanted)
    angle, faint = uniform(-math.pi / 8, math.pi / 8, most), uniform(0, 1, most) ** 2
    directions, side = uniform(-1, 1, most, 3, 3), uniform(0, 2 * math.pi, most)
    # Half of the objects have a plank in front of them.
    covered = uniform(-1, 1, most).clamp_min(0) * occlusion

    # From here on the n objects that found a place, image by image. Each is drawn on a patch of its own.
    small, faint, labels, base = small[placed], faint[placed], labels[placed], base[placed.nonzero()[:, 0]]
    radius, center, angle = radius[placed], center[placed], angle[placed]
    half = math.ceil(_REACH * radii[1] * size) + 1
    corner = center.floor().long() - half
    x, y = ((torch.arange(2 * half) + 0.5 + (corner - center)[:, k, None]) / radius[:, None] for k in (0, 1))
    x, y, cos, sin = x[:, None], y[:, :, None], angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    u, v, pixel = x * cos + y * sin, y * cos - x * sin, 1 / radius.view(-1, 1, 1)
    mask, second = figure(labels % len(SHAPES), pattern[placed], u, v, pixel)
    toward = directions[placed].unbind(1)
    color = color_apart(base, toward[0], 0.65)
    other = color + 0.35 * (color_apart(base, toward[1], 0.65) - color)
    paint = painted(base, color, other, second, 1 - faint * (1 - contrast))
    plank = covering(u, v, mask, pixel, side[placed], covered[placed], _REACH)
    plank_color = color_apart(base, toward[2], 0.15)[:, :, None, None]

    image = pad(ground, (2 * half,) * 4)
    inner = (..., slice(2 * half, 2 * half + size), slice(2 * half, 2 * half + size))
    # The number of the object that is seen at each pixel, from 1 on; 0 where none is.
    owner = torch.zeros(count, *image.shape[2:], dtype=torch.int64)
    there: list[dict[int, int]] = [{} for _ in range(count)]
    for k, i in enumerate(placed.nonzero()[:, 0].tolist()):
        left, top = (corner[k] + 2 * half).tolist()
        window = (..., slice(top, top + 2 * half), slice(left, left + 2 * half))
        before, shape = owner[i][window].clone(), mask[k] > 0.5
        owner[i][window][shape] = k + 1
        owner[i][window][plank[k] > 0.5] = 0
        seen, areas = owner[i][inner].flatten().bincount(minlength=k + 2), {**there[i], k: int(shape.sum())}
        if any(seen[number + 1] < _LEAST_SEEN * area for number, area in areas.items()):
            owner[i][window] = before
            continue
        there[i] = areas
        patch = torch.lerp(image[i][window], paint[k], mask[k])
        image[i][window] = torch.lerp(patch, plank_color[k].expand_as(patch), plank[k])

    image, owner = image[inner], owner[inner]
    image = image + uniform(0, noise, 1, 1, 1) * torch.randn(_PIECE, 3, size, size, generator=generator)[:count]
    annotations, difficulty = [], []
    for i, areas in enumerate(there):
        numbers = torch.tensor(list(areas), dtype=torch.int64)
        visible = owner[i] == numbers.view(-1, 1, 1) + 1
        area = visible.sum((1, 2)).float()
        hidden = 1 - area / torch.tensor(list(areas.values()))
        annotations.append(Annotation(masks_to_boxes(visible) + _EDGE, labels[numbers] + 1, area=area))
        difficulty += torch.stack([small[numbers], faint[numbers], hidden], dim=1).tolist()
    masks = torch.cat([labels.new_zeros(1), labels + 1])[owner].byte()
    pictures = (image * 255).round().clamp(0, 255).byte().contiguous(memory_format=torch.channels_last)
    return pictures, masks, annotations, difficulty


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
