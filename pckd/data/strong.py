"""A strongly augmented view: two random operations of random strength on each image, and a hole.

As in the released code of MLD (Jin et al., CVPR 2023), which has it from FixMatch. Shapes: n images that drew the same
operation, B images of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as pixel

__all__ = ["strong_augment"]

HOLE = (125, 123, 114)
"""Its color: the mean of CIFAR."""


def _sampled(x: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """The pixels of each image at these places, which broadcast to [n, 1, H, W]; outside is black."""
    height, width = x.shape[2:]
    column, row = column.floor().long(), row.floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).flatten(2)
    return torch.where(inside, x.flatten(2).gather(2, place.expand(-1, x.shape[1], -1)).view(x.shape), 0)


def _moved(x: Tensor, s: Tensor, *, shear: tuple[float, float] = (0, 0), shift: tuple[float, float] = (0, 0)) -> Tensor:
    """Sheared from the corner, or shifted by a share of the sides: by up to this much to the right and down."""
    (column, row), s = _centers(x), 2 * s - 1
    width, height = x.shape[3], x.shape[2]
    moved = column + s * (shear[0] * row + shift[0] * width), row + s * (shear[1] * column + shift[1] * height)
    return _sampled(x, *moved)


def _centers(x: Tensor) -> tuple[Tensor, Tensor]:
    """Column [W] and row [H, 1] of the pixels' centers."""
    height, width = x.shape[2:]
    return torch.arange(width, device=x.device) + 0.5, torch.arange(height, device=x.device)[:, None] + 0.5


def _turned(x: Tensor, s: Tensor) -> Tensor:
    (column, row), (height, width) = _centers(x), x.shape[2:]
    right, down, angle = column - width / 2, row - height / 2, math.radians(30) * (2 * s - 1)
    sin, cos = angle.sin(), angle.cos()
    return _sampled(x, cos * right - sin * down + width / 2, sin * right + cos * down + height / 2)


def _blended(plain: Callable[[Tensor], Tensor], x: Tensor, s: Tensor) -> Tensor:
    """Between the image and a plainer one, of which at least 5 % and at most 95 % are taken."""
    other = plain(x).float()
    return (other + (0.05 + 0.9 * s) * (x.float() - other)).to(torch.uint8)


def _gray(x: Tensor) -> Tensor:
    return pixel.rgb_to_grayscale(x) if x.shape[1] == 3 else x


def _mean(x: Tensor) -> Tensor:
    return (_gray(x).float().mean((1, 2, 3), keepdim=True) + 0.5).floor()


def _blurred(x: Tensor) -> Tensor:
    """The mean of 3 x 3 pixels, of which the middle one counts five times; the edge as it is."""
    blurred, pixels = x.clone(), x.float()
    around = F.avg_pool2d(pixels, 3, 1, divisor_override=1)
    blurred[:, :, 1:-1, 1:-1] = ((around + 4 * pixels[:, :, 1:-1, 1:-1]) / 13).round()
    return blurred


_OPERATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "identity": lambda x, s: x,
        "autocontrast": lambda x, s: pixel.autocontrast(x),
        "equalize": lambda x, s: pixel.equalize(x),
        "brightness": partial(_blended, torch.zeros_like),
        "color": partial(_blended, _gray),
        "contrast": partial(_blended, _mean),
        "sharpness": lambda x, s: _blended(_blurred, x, s) if min(x.shape[-2:]) > 2 else x,
        # The upper 4 to 7 bits stay.
        "posterize": lambda x, s: x & (256 - (16 >> (4 * s).long())).to(torch.uint8),
        "solarize": lambda x, s: torch.where(x < 256 * s, x, 255 - x),
        "rotate": _turned,
        "shear_x": partial(_moved, shear=(0.3, 0)),
        "shear_y": partial(_moved, shear=(0, 0.3)),
        "shift_x": partial(_moved, shift=(0.3, 0)),
        "shift_y": partial(_moved, shift=(0, 0.3)),
    }
)
"""Each of images uint8 [n, C, H, W] and where in its range the strength is, [n, 1, 1, 1] in [0, 1)."""


def _cut_out(x: Tensor, drawn: Tensor) -> Tensor:
    """A square hole in each image: up to half the width, around a place anywhere.

    Args:
        drawn: [3, B, 1, 1, 1] in [0, 1): its side, and where it is.
    """
    height, width = x.shape[2:]
    side = drawn[0] * width / 2
    left, top = ((size * at - side / 2).clamp(min=0).floor() for size, at in ((width, drawn[1]), (height, drawn[2])))
    column, row = torch.arange(width, device=x.device), torch.arange(height, device=x.device)[:, None]
    hole = (column >= left) & (column <= left + side) & (row >= top) & (row <= top + side)
    color = torch.tensor(HOLE if x.shape[1] == 3 else HOLE[1:2], dtype=torch.uint8)
    return torch.where(hole, color.view(-1, 1, 1).to(x.device, non_blocking=True), x)


def strong_augment(images: Tensor, *, generator: torch.Generator, operations: int = 2) -> Tensor:
    """Random operations on each image, one after the other, of any strength; then a hole.

    The released code calls itself RandAugment(2, 10), and makes no use of the 10.

    Args:
        images: uint8 [B, C, H, W], C = 1 or 3, cropped and flipped.
        generator: a CPU generator; what is drawn does not depend on the device.
        operations: how many an image gets.

    Returns:
        uint8 [B, C, H, W].
    """
    count, device, known = len(images), images.device, list(_OPERATIONS.values())
    for _ in range(operations):
        drawn = torch.randint(0, len(known), (count,), generator=generator)
        strength = torch.rand(count, 1, 1, 1, generator=generator)
        augmented = images.clone()
        for kind in drawn.unique().tolist():
            chosen = (drawn == kind).nonzero()[:, 0]
            rows, given = (x.to(device, non_blocking=True) for x in (chosen, strength[chosen]))
            augmented[rows] = known[kind](images[rows], given)
        images = augmented
    return _cut_out(images, torch.rand(3, count, 1, 1, 1, generator=generator).to(device, non_blocking=True))
