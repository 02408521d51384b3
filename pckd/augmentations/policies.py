"""Augmentations that draw operations from a list: RandAugment, TrivialAugment, AutoAugment."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as pixel

from registry import AUGMENTATIONS, UserError

BINS = 31
"""Strengths of an operation, from none to all of it."""


def _affine(
    x: Tensor, *, angle: float = 0.0, right: float = 0.0, down: float = 0.0, shear: tuple[float, float] = (0, 0)
) -> Tensor:
    height, width = x.shape[-2:]
    return pixel.affine(
        x, angle, [round(right * width), round(down * height)], 1.0, [math.degrees(math.atan(s)) for s in shear]
    )


def _operations(
    turn: float, shear: float, shift: float, bits: int, enhance: float
) -> tuple[Callable[[Tensor, float], Tensor], ...]:
    """The fourteen operations, each of a signed strength s in [-1, 1].

    Args:
        turn: degrees. shear: tangent. shift: share of the image's side. bits: that posterizing takes away. enhance:
            share by which a color, contrast, brightness and sharpness change.
    """
    return (
        lambda x, s: x,
        lambda x, s: _affine(x, shear=(shear * s, 0)),
        lambda x, s: _affine(x, shear=(0, shear * s)),
        lambda x, s: _affine(x, right=shift * s),
        lambda x, s: _affine(x, down=shift * s),
        lambda x, s: _affine(x, angle=turn * s),
        lambda x, s: pixel.adjust_brightness(x, 1 + enhance * s),
        lambda x, s: pixel.adjust_saturation(x, 1 + enhance * s) if x.shape[1] == 3 else x,
        lambda x, s: pixel.adjust_contrast(x, 1 + enhance * s),
        lambda x, s: pixel.adjust_sharpness(x, 1 + enhance * s) if min(x.shape[-2:]) > 2 else x,
        lambda x, s: pixel.posterize(x, 8 - round(bits * abs(s))),
        lambda x, s: pixel.solarize(x, 255 * (1 - abs(s))),
        lambda x, s: pixel.autocontrast(x),
        lambda x, s: pixel.equalize(x),
    )


RAND = _operations(30.0, 0.3, 150 / 331, 4, 0.9)
TRIVIAL = _operations(135.0, 0.99, 32 / 224, 6, 0.99)


def _applied(
    images: Tensor, kinds: Tensor, bins: Tensor, operations: tuple[Callable[[Tensor, float], Tensor], ...]
) -> Tensor:
    """Each image changed by its operation, those together that draw the same one.

    Args:
        kinds: int64 [B], twice the operation, plus 1 where its strength is negative. bins: int64 [B], 0 to BINS - 1.
    """
    result = images.clone()
    keys = kinds * BINS + bins
    for key in keys.unique().tolist():
        kind, strength = divmod(key, BINS)
        rows = (keys == key).nonzero()[:, 0].to(images.device, non_blocking=True)
        signed = (-1 if kind % 2 else 1) * strength / (BINS - 1)
        result[rows] = operations[kind // 2](images[rows], signed)
    return result


def _checked(images: Tensor, name: str) -> None:
    if images.shape[1] not in (1, 3):
        raise UserError(f"{name} changes colors, and the images have {images.shape[1]} channels; leave it out")


@AUGMENTATIONS.register("rand_augment", draws=8)
def rand_augment(images: Tensor, drawn: Tensor, *, n: int = 2, m: int = 9) -> Tensor:
    """``n`` random operations of strength ``m`` of 30 (Cubuk et al., arXiv 1909.13719), n up to 8."""
    _checked(images, "rand_augment")
    if not (0 <= n <= 8 and 0 <= m < BINS):
        raise UserError(f"rand_augment: n={n}, m={m}: n is 0 to 8, m 0 to {BINS - 1}")
    for number in range(n):
        kinds = (drawn[:, number] * 2 * len(RAND)).long()
        images = _applied(images, kinds, torch.full_like(kinds, m), RAND)
    return images


@AUGMENTATIONS.register("trivial_augment", draws=2)
def trivial_augment(images: Tensor, drawn: Tensor) -> Tensor:
    """One random operation of random strength (Müller and Hutter, arXiv 2103.10158, wide)."""
    _checked(images, "trivial_augment")
    return _applied(images, (drawn[:, 0] * 2 * len(TRIVIAL)).long(), (drawn[:, 1] * BINS).long(), TRIVIAL)


@AUGMENTATIONS.register("auto_augment", draws=1)
def auto_augment(images: Tensor, drawn: Tensor, *, policy: str = "cifar10") -> Tensor:
    """The two operations of a random line of a learned policy (Cubuk et al., arXiv 1805.09501); torchvision's.

    Args:
        policy: ``"cifar10"``, ``"imagenet"`` or ``"svhn"``.
    """
    _checked(images, "auto_augment")
    known = {kind.value: kind for kind in v2.AutoAugmentPolicy}
    if policy not in known:
        raise UserError(f"auto_augment: policy={policy!r}: it must be one of {', '.join(known)}")
    transform, generator = v2.AutoAugment(known[policy]), torch.random.default_generator
    before = generator.get_state()
    try:
        changed = []
        for image, number in zip(images, (drawn[:, 0] * 2**53).long().tolist(), strict=True):
            generator.manual_seed(number)
            changed.append(transform(image))
    finally:
        generator.set_state(before)
    return torch.stack(changed)
