from __future__ import annotations

from torch import Tensor

from pckd.losses.maps import paired_shapes
from pckd.ops import exact, full, unit
from registry import LOSSES, METHODS, Setup, Term


def check(setup: Setup) -> None:
    paired_shapes("sp", setup.student.maps, setup.teacher.maps)


@LOSSES.register("sp", check=check)
def similarity_preserving(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Similarity-preserving distillation; [N] (Tung & Mori, arXiv 1907.09682, L_SP).

    G = Q Q^T of the flattened maps, each row scaled to length 1. The published loss ||G_t - G_s||^2 / N^2 is the mean
    of these values: row n holds what the similarities of sample n to the batch contribute.

    Args:
        student_map: [N, ...]; teacher_map: [N, ...]; constant.
    """
    with exact(student_map):
        student, teacher = (unit(q @ q.T) for q in (full(m).flatten(1) for m in (student_map, teacher_map.detach())))
        return (student - teacher).square().mean(1)


@METHODS.register("sp", paper="Tung & Mori, arXiv 1907.09682", year=2019)
def sp(ce: float = 1.0, weight: float = 3000.0) -> list[Term]:
    """Similarity-preserving distillation (Tung and Mori 2019): cross entropy plus similarities within the batch."""
    return [Term("cross_entropy", ce), Term("sp", weight)]
