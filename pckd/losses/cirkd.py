from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.losses.levels import FEATURES, level_shapes, of_level
from pckd.losses.maps import matched, paired
from pckd.ops import exact, unit
from registry import LOSSES, METHODS, Setup, Term, UserError

LARGE = 256
"""Cells on both sides from which on the released code pools patches of 4 x 4."""


def relations(student: Tensor, teacher: Tensor, others: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """KL of the teacher's and the student's distribution of similarity with other features.

    Args:
        student, teacher: [..., P, Cs] and [..., P, Ct], of length 1; others: [M, Cs] and [M, Ct], the student's and
            the teacher's, likewise.

    Returns:
        [..., P].
    """
    with exact(student):
        own, target = (
            (cells @ other.T / temperature).log_softmax(-1)
            for cells, other in zip((student, teacher), others, strict=True)
        )
    return (target.exp() * (target - own)).sum(-1)


def check(setup: Setup, *, temperature: float, patch: int | None, level: int | None) -> None:
    level_shapes("cirkd_batch", setup, level)
    if not temperature > 0 or (patch is not None and patch < 1):
        raise UserError("cirkd_batch: temperature must be above 0, and patch at least 1")


@LOSSES.register("cirkd_batch", inputs=("student_maps", "teacher_maps"), check=check)
def cross_image_relations(
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    temperature: float = 0.1,
    patch: int | None = None,
    level: int | None = FEATURES,
) -> Tensor:
    """Pixel-to-pixel relations of the images of a batch (Yang et al., arXiv 2204.06986).

    Each cell's similarities with the cells of one image are a distribution; the mean divergence over all pairs of
    images and all cells is taken. Levels are summed.

    Args:
        student_maps: [B, Cs, Hs, Ws] each; teacher_maps: [B, Ct, Ht, Wt] each; constant. Paired from the last
            backwards; of two sizes the larger is average pooled. temperature: above 0.
        patch: side of the patches that are averaged to one cell; by default 4 from 256 x 256 cells on, as released,
            else 1. Memory grows by (B * H * W)^2. level: the only one to compare.

    Returns:
        [B].
    """
    values = []
    for pair in of_level(paired(student_maps, teacher_maps), level):
        sides = matched(*pair)
        size = patch or (4 if min(sides[0].shape[2:]) >= LARGE else 1)
        pooled = (F.avg_pool2d(m, size, ceil_mode=True).flatten(2).transpose(1, 2) for m in sides)
        student, teacher = map(unit, pooled)
        images = [relations(student, teacher, other, temperature) for other in zip(student, teacher, strict=True)]
        values.append(torch.stack(images).mean((0, 2)))
    return torch.stack(values).sum(0)


@METHODS.register("cirkd", paper="Yang et al., arXiv 2204.06986", year=2022)
def cirkd(ce: float = 1.0, kd: float = 1.0, batch: float = 1.0, pixel: float = 0.1, region: float = 0.1) -> list[Term]:
    """Cross-image relations (Yang et al. 2022): a supervised term, KD by pixel, and relations in batch and memory.

    The weights are the defaults of the released code. Its second version adds a hint and relations of channels, which
    are not here.
    """
    terms = [Term("cross_entropy", ce), Term("kd", kd, options={"temperature": 1.0})]
    memory = Term("cirkd_memory", rows="images", options={"pixel": pixel, "region": region})
    return [*terms, Term("cirkd_batch", batch, rows="images"), memory]
