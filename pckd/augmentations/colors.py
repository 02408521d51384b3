"""Augmentations that change colors."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as pixel

from registry import AUGMENTATIONS


@AUGMENTATIONS.register("color_jitter", draws=4)
def color_jitter(
    images: Tensor,
    drawn: Tensor,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.0,
) -> Tensor:
    """Brightness, contrast, saturation and hue, in this order, each changed by a factor of up to 1 - x to 1 + x.

    Args:
        brightness, contrast, saturation: x. hue: share of the color circle by which it may turn, up to 0.5. Gray images
            keep saturation and hue.
    """
    amount = torch.tensor([brightness, contrast, saturation]).double()
    factors = (1 + amount * (2 * drawn[:, :3] - 1)).clamp(min=0).float().to(images.device, non_blocking=True)
    bright, sharp, vivid = factors.view(-1, 3, 1, 1, 1).unbind(1)
    changed = (images.float() * bright).clamp(0, 255)
    changed = _blend(changed, _gray(changed).mean((2, 3), keepdim=True), sharp)
    if images.shape[1] != 3:
        return changed.round().to(images.dtype)
    result = _blend(changed, _gray(changed), vivid).round().to(images.dtype)
    if hue:
        turns = (hue * (2 * drawn[:, 3] - 1)).tolist()
        result = torch.stack([pixel.adjust_hue(image, turn) for image, turn in zip(result, turns, strict=True)])
    return result


@AUGMENTATIONS.register("grayscale", draws=1)
def grayscale(images: Tensor, drawn: Tensor, *, p: float = 0.2) -> Tensor:
    """A share ``p`` of the images without their colors."""
    if images.shape[1] != 3:
        return images
    rows = (drawn[:, 0] < p).nonzero()[:, 0].to(images.device, non_blocking=True)
    gray = _gray(images[rows].float()).round().to(images.dtype)
    return images.index_copy(0, rows, gray.expand(-1, 3, -1, -1))


def _gray(images: Tensor) -> Tensor:
    """[B, 1, H, W], by the weights of ITU-R 601-2."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, 1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _blend(images: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return (other + share * (images - other)).clamp(0, 255)
