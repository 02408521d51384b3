"""Losses about how the channels of a feature map relate to each other."""

from __future__ import annotations

from torch import Tensor

from pckd.functional.numerics import exact, full, unit


def channel_correlation(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Inter-channel correlation L_ICKD-C (Liu et al., arXiv 2202.03680): sum of (G_s - G_t)^2 over C.

    With F the map as a [C, H * W] matrix, G = F F^T is C x C: its size does not depend on H and W. Its rows are
    normalized and the squares divided by C, as in the released code for CIFAR.

    Args:
        student_map: [N, C, H, W], already projected to the teacher's channels.
        teacher_map: [N, C, H', W']; constant; another resolution is fine.

    Returns:
        [N].

    Raises:
        ValueError: the numbers of channels differ.
    """
    if student_map.shape[1] != teacher_map.shape[1]:
        raise ValueError(
            f"channel_correlation needs maps of as many channels, got {student_map.shape[1]} and "
            f"{teacher_map.shape[1]}: project the student's first"
        )
    with exact(student_map):
        student, teacher = (full(x).flatten(2) for x in (student_map, teacher_map.detach()))
        difference = unit(student @ student.mT) - unit(teacher @ teacher.mT)
        return difference.square().sum(dim=(1, 2)) / student.shape[1]
