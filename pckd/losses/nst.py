from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pckd.losses.maps import matched, paired, paired_shapes
from pckd.ops import exact, unit
from registry import LOSSES, METHODS, Setup, Term


def check(setup: Setup) -> None:
    paired_shapes("nst", setup.student.maps[1:], setup.teacher.maps[1:])


@LOSSES.register("nst", inputs=("student_stages", "teacher_stages"), check=check)
def nst(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Neuron selectivity transfer, L_MMD^2 with the polynomial kernel; [N] (Huang & Wang, arXiv 1707.01219).

    Squared maximum mean discrepancy between the channels of the two maps, each a unit vector over the positions, with
    k(a, b) = (a^T b)^2. Layers are summed.

    Args:
        student_maps: [N, Cs, Hs, Ws] each; teacher_maps: [N, Ct, Ht, Wt] each; constant. Paired from the last
            backwards; of two sizes the larger is average pooled.
    """
    layers = []
    for pair in paired(student_maps, teacher_maps):
        student, teacher = (unit(m.flatten(2)) for m in matched(*pair))
        layers.append(_kernel(teacher, teacher) + _kernel(student, student) - 2 * _kernel(student, teacher))
    return torch.stack(layers).sum(0)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    with exact(a):
        return (a @ b.mT).square().mean((1, 2))


@METHODS.register("nst", paper="Huang & Wang, arXiv 1707.01219", year=2017)
def nst_method(ce: float = 1.0, weight: float = 50.0) -> list[Term]:
    """Neuron selectivity transfer (Huang and Wang 2017): cross entropy plus the polynomial kernel's discrepancy."""
    return [Term("cross_entropy", ce), Term("nst", weight)]
