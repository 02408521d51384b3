"""Augmentations that mix an image with another one, and its label with the other's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from registry import AUGMENTATIONS, UserError


def shares(drawn: Tensor, alpha: float, name: str) -> Tensor:
    """[B], float64: numbers of the Beta distribution with both parameters ``alpha``, each of its own seed [B]."""
    if not alpha > 0:
        raise UserError(f"{name}: alpha={alpha}: it must be above 0")
    seeds = (drawn * 2**53).long().tolist()
    return torch.tensor([np.random.Generator(np.random.Philox(key=seed)).beta(alpha, alpha) for seed in seeds]).double()


@AUGMENTATIONS.register("mixup", draws=1, mixes=True)
def mixup(views: Tensor, others: Tensor, drawn: Tensor, *, alpha: float = 0.8) -> tuple[Tensor, Tensor]:
    """The weighted mean of two images (Zhang et al., arXiv 1710.09412), the weight drawn from Beta(alpha, alpha)."""
    share = shares(drawn[:, 0], alpha, "mixup")
    weight = share.float().view(-1, 1, 1, 1, 1).to(views.device, non_blocking=True)
    return torch.lerp(others, views, weight), share


@AUGMENTATIONS.register("cutmix", draws=3, mixes=True)
def cutmix(views: Tensor, others: Tensor, drawn: Tensor, *, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """A rectangle of the other image in this one (Yun et al., arXiv 1905.04899); labels weigh by their areas.

    The rectangle's sides are sqrt(1 - share) of the image's, the share drawn from Beta(alpha, alpha), its center
    anywhere; what is outside of the image is cut off.
    """
    height, width = views.shape[3:]
    side = (1 - shares(drawn[:, 0], alpha, "cutmix")).sqrt()
    inside = []
    for size, place in ((height, drawn[:, 1]), (width, drawn[:, 2])):
        half, center = (side * size / 2)[:, None], (place * size)[:, None]
        position = torch.arange(size) + 0.5
        inside.append((position - center).abs() < half)
    cut = inside[0][:, :, None] & inside[1][:, None]
    mixed = torch.where(cut[:, None, None].to(views.device, non_blocking=True), others, views)
    return mixed, 1 - cut.double().mean((1, 2))
