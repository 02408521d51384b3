from __future__ import annotations

import torch
from torch import Tensor

from pckd.losses.levels import Levels
from pckd.losses.maps import matched
from pckd.ops import unit
from registry import LOSSES, METHODS, Context, Output, Setup, Term


def pearson_distance(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """1 - Pearson correlation of each channel (Cao et al., arXiv 2207.02039), as PKD's mean squared difference.

    Both maps are normalized per channel, by mean and deviation over all images and cells. Half the mean squared
    difference is then 1 - correlation, and each image has its part of it. A constant channel counts as all zeros.

    Args:
        student_map: [B, C, Hs, Ws]. teacher_map: [B, C, Ht, Wt]; constant. Of two sizes the larger is average pooled
            (released: the student's is interpolated).

    Returns:
        [B]; the mean over the images is that of 1 - correlation over the channels.
    """
    student, teacher = (m.flatten(2).transpose(0, 1) for m in matched(student_map, teacher_map))
    student, teacher = (
        unit((m - m.mean((1, 2), keepdim=True)).flatten(1)).unflatten(1, m.shape[1:]) for m in (student, teacher)
    )
    return (student - teacher).square().sum(2).mean(0) * (student.shape[1] / 2)


@LOSSES.register("pkd")
class PKD(Levels):
    """1 - Pearson correlation of the maps' channels, summed over the levels; [B] (PKD, arXiv 2207.02039)."""

    def __init__(self, setup: Setup, *, level: int | None = None) -> None:
        super().__init__("pkd", setup, level, bias=False)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return torch.stack([pearson_distance(*pair) for pair in self.pairs(student, teacher)]).sum(0)


@METHODS.register("pkd", paper="Cao et al., arXiv 2207.02039", year=2022)
def pkd(ce: float = 1.0, weight: float = 6.0, level: int | None = None) -> list[Term]:
    """PKD (Cao et al. 2022): a supervised term plus the correlation of FPN levels.

    The weight is that of mmrazor's Faster R-CNN; its RetinaNet has 10.
    """
    return [Term("cross_entropy", ce), Term("pkd", weight, rows="images", options={"level": level})]
