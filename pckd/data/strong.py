"""A strongly augmented view: RandAugment over a batch, by groups of images that drew the same operation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as pixel

__all__ = ["strong_augment"]

_NEAREST = InterpolationMode.NEAREST


def _affine(
    images: Tensor, *, angle: float = 0.0, shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> Tensor:
    return pixel.affine(images, angle, [round(s) for s in shift], 1.0, list(shear), interpolation=_NEAREST)


# The fourteen operations of RandAugment (Cubuk et al., arXiv 1909.13719); s is a signed strength in [-1, 1].
_OPERATIONS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda x, s: x,
    lambda x, s: pixel.autocontrast(x),
    lambda x, s: pixel.equalize(x),
    lambda x, s: _affine(x, angle=30 * s),
    lambda x, s: pixel.solarize(x, 256 * (1 - abs(s))),
    lambda x, s: pixel.adjust_saturation(x, 1 + 0.9 * s) if x.shape[1] == 3 else x,
    lambda x, s: pixel.posterize(x, 8 - round(4 * abs(s))),
    lambda x, s: pixel.adjust_contrast(x, 1 + 0.9 * s),
    lambda x, s: pixel.adjust_brightness(x, 1 + 0.9 * s),
    lambda x, s: pixel.adjust_sharpness(x, 1 + 0.9 * s) if min(x.shape[-2:]) > 2 else x,
    lambda x, s: _affine(x, shear=(17 * s, 0)),
    lambda x, s: _affine(x, shear=(0, 17 * s)),
    lambda x, s: _affine(x, shift=(0.3 * s * x.shape[-1], 0)),
    lambda x, s: _affine(x, shift=(0, 0.3 * s * x.shape[-2])),
)


def strong_augment(
    images: Tensor, *, generator: torch.Generator, operations: int = 2, magnitude: float = 1 / 3
) -> Tensor:
    """RandAugment: ``operations`` random operations on each image, one after the other.

    Args:
        images: uint8 [B, C, H, W].
        generator: a CPU generator; the result does not depend on the device.
        operations: how many an image gets.
        magnitude: 0 to 1 of each operation's range; 1/3 is 10 of 30, as in the strong view of Jin et al. (CVPR 2023).

    Returns:
        uint8 [B, C, H, W].
    """
    kinds = 2 * len(_OPERATIONS)
    for _ in range(operations):
        drawn = torch.randint(0, kinds, (images.shape[0],), generator=generator)
        augmented = images.clone()
        for kind in drawn.unique().tolist():
            rows = (drawn == kind).nonzero()[:, 0].to(images.device, non_blocking=True)
            sign = 1.0 if kind % 2 else -1.0
            augmented[rows] = _OPERATIONS[kind // 2](images[rows], sign * magnitude)
        images = augmented
    return images
