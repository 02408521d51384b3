"""Losses that compare embeddings and feature maps."""

from __future__ import annotations

from torch import Tensor

from pckd.functional.numerics import unit


def feature_alignment(projected_student: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Feature alignment L_FA: 2 - 2 cos(P(f_s), f_t) (PCKD, arXiv 2410.14143, feature alignment).

    Args:
        projected_student: [N, Dt], the student's embedding after its projection P.
        teacher_embedding: [N, Dt]; constant.

    Returns:
        [N] in [0, 4].
    """
    return 2 - 2 * (unit(projected_student) * unit(teacher_embedding.detach())).sum(-1)
