"""Augmentations that move pixels, or take some away."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as pixel

from registry import AUGMENTATIONS, UserError


def resampled(images: Tensor, matrix: Tensor) -> Tensor:
    """Each image [C, H, W] seen through a matrix [2, 3] of its own, in coordinates of -1 to 1; outside is black."""
    matrix = matrix.to(images.device, torch.float32, non_blocking=True)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False).round().to(images.dtype)


@AUGMENTATIONS.register("random_resized_crop", draws=4)
def random_resized_crop(images: Tensor, drawn: Tensor, *, least: float = 0.08, ratio: float = 4 / 3) -> Tensor:
    """A part of the image, resized to all of it (Szegedy et al., arXiv 1409.4842): bilinearly, with antialiasing.

    Args:
        least: share of the area that is left, at the least; up to all of it. ratio: most that width is above height,
            or height above width, in shares of the image's sides.
    """
    if not (0 < least <= 1 <= ratio):
        raise UserError(f"random_resized_crop: least={least}, ratio={ratio}: least is in (0, 1], ratio 1 or more")
    height, width = images.shape[2:]
    area = least + (1 - least) * drawn[:, 0]
    stretch = (math.log(ratio) * (2 * drawn[:, 1] - 1)).exp()
    tall = (height * (area / stretch).sqrt()).round().clamp(1, height)
    wide = (width * (area * stretch).sqrt()).round().clamp(1, width)
    top, left = (drawn[:, 2] * (height - tall + 1)).floor(), (drawn[:, 3] * (width - wide + 1)).floor()
    boxes = torch.stack([top, left, tall, wide], 1).long().tolist()
    cut = [pixel.resized_crop(image, *box, size=[height, width]) for image, box in zip(images, boxes, strict=True)]
    return torch.stack(cut)


@AUGMENTATIONS.register("rotate", draws=1)
def rotate(images: Tensor, drawn: Tensor, *, degrees: float = 15.0) -> Tensor:
    """Turned by up to ``degrees`` to either side, bilinearly; the corners are black."""
    angle = math.radians(degrees) * (2 * drawn[:, 0] - 1)
    height, width = images.shape[2:]
    sin, cos, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
    rows = [cos, -sin * height / width, zero], [sin * width / height, cos, zero]
    return resampled(images, torch.stack([torch.stack(row, 1) for row in rows], 1))


@AUGMENTATIONS.register("random_erasing", draws=5)
def random_erasing(
    images: Tensor, drawn: Tensor, *, p: float = 0.25, least: float = 0.02, most: float = 1 / 3, ratio: float = 3.3
) -> Tensor:
    """A rectangle is painted in the image's mean color (Zhong et al., arXiv 1708.04896).

    Args:
        p: share of the images. least, most: of the area, drawn between. ratio: most that width is above height, or
            height above width.
    """
    chosen = (drawn[:, 0] < p).nonzero()[:, 0]
    rows, drawn = chosen.to(images.device, non_blocking=True), drawn[chosen]
    some, (height, width) = images[rows], images.shape[2:]
    area = (least + (most - least) * drawn[:, 1]) * height * width
    stretch = (math.log(ratio) * (2 * drawn[:, 2] - 1)).exp()
    tall, wide = (area / stretch).sqrt().clamp(max=height), (area * stretch).sqrt().clamp(max=width)
    inside = _between(height, drawn[:, 3], tall)[:, :, None] & _between(width, drawn[:, 4], wide)[:, None]
    color = some.float().mean((2, 3), keepdim=True).round().to(images.dtype)
    painted = torch.where(inside[:, None].to(images.device, non_blocking=True), color, some)
    return images.index_copy(0, rows, painted)


def _between(size: int, place: Tensor, length: Tensor) -> Tensor:
    """[B, size], bool: which positions are in a stretch of whole pixels of about this length."""
    length = length.round().clamp(min=1)
    first = (place * (size - length + 1)).floor()
    position = torch.arange(size)
    return (position >= first[:, None]) & (position < (first + length)[:, None])
