from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pckd.losses.maps import paired, paired_shapes, resized, smaller_size
from pckd.ops import exact
from registry import LOSSES, METHODS, Setup, Term


def check(setup: Setup) -> None:
    paired_shapes("fsp", setup.student.maps, setup.teacher.maps, least=2, same_widths=True)


@LOSSES.register("fsp", check=check)
def fsp(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Flow of the solution procedure; [N] (Yim et al., CVPR 2017, L_FSP).

    G_ij = mean over the positions of channel i of a layer times channel j of the next one; the mean squared
    difference of the two networks' matrices, summed over the consecutive layers.

    Args:
        student_maps: [N, C, H, W] each; teacher_maps: [N, C, H', W'] each, of the same widths; constant. Paired from
            the last backwards; of two consecutive sizes the larger is average pooled.
    """
    pairs = paired(student_maps, [m.detach() for m in teacher_maps])
    student, teacher = (_flows(side) for side in zip(*pairs, strict=True))
    return torch.stack([(s - t).square().mean((1, 2)) for s, t in zip(student, teacher, strict=True)]).sum(0)


def _flows(maps: Sequence[Tensor]) -> list[Tensor]:
    flows = []
    for first, second in pairwise(maps):
        size = smaller_size(first, second)
        with exact(first):
            bottom, top = (resized(m, size).flatten(2) for m in (first, second))
            flows.append(bottom @ top.mT / bottom.shape[2])
    return flows


@METHODS.register("fsp", paper="Yim et al., CVPR 2017", year=2017)
def fsp_method(
    ce: float = 1.0, weight: float = 50.0, initial: int = 30, initial_weight: float = 1.0, main: bool = False
) -> list[Term]:
    """Flow of the solution procedure (Yim et al. 2017): initial epochs of it alone, then cross entropy alone.

    Args:
        ce: weight of the cross entropy.
        weight: of the term in the schedule, where ``main=True`` keeps it there. The published command has 50 and its
            code no such term: its initial epochs are not weighted, and with 50 they can diverge.
        initial: epochs, of 240, before the schedule. initial_weight: weight in them.
        main: whether the term also acts in the schedule.
    """
    flows = Term("fsp", weight, initial=initial, initial_weight=initial_weight, main=main)
    return [Term("cross_entropy", ce), flows]
