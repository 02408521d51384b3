from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.ops import full
from registry import LOSSES, NotApplicable, Setup


def one_width(setup: Setup) -> None:
    student, teacher = setup.student.embedding, setup.teacher.embedding
    if student != teacher:
        raise NotApplicable(
            f"center_alignment needs embeddings of one width, but the student's has {student} and the "
            f"teacher's {teacher}; center_relation works for any two widths"
        )


@LOSSES.register(
    "center_alignment",
    inputs=("student_centers", "student_bias", "teacher_centers", "teacher_bias"),
    check=one_width,
    per_sample=False,
)
def center_alignment(
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
) -> Tensor:
    """Center alignment L_CA: mean squared difference of [W_s, b_s] and [W_t, b_t]; scalar (PCKD, arXiv 2410.14143).

    Args:
        student_weight: [K, D]; teacher_weight: [K, D], the same D; constant.
        student_bias: [K] or None; teacher_bias: [K] or None; constant. Compared only where both are given.

    Raises:
        ValueError: the widths differ; :func:`center_relation` works for any two widths.
    """
    if student_weight.shape != teacher_weight.shape:
        raise ValueError(
            f"center_alignment needs centers of one shape, got {tuple(student_weight.shape)} and "
            f"{tuple(teacher_weight.shape)}; center_relation works for any two widths"
        )
    student, teacher = full(student_weight), full(teacher_weight.detach())
    if student_bias is not None and teacher_bias is not None:
        student = torch.cat([student, full(student_bias)[:, None]], dim=1)
        teacher = torch.cat([teacher, full(teacher_bias.detach())[:, None]], dim=1)
    return F.mse_loss(student, teacher)
