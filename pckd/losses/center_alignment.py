from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, Context, NotApplicable, Output, Setup


@LOSSES.register("center_alignment")
class CenterAlignment(nn.Module):
    """Mean squared difference of the two networks' centers; scalar (PCKD, arXiv 2410.14143, L_CA)."""

    per_sample = False

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        student, teacher = setup.student.embedding, setup.teacher.embedding
        if student != teacher:
            raise NotApplicable(
                f"center_alignment needs embeddings of one width, but the student's has {student} and the "
                f"teacher's {teacher}; center_relation works for any two widths"
            )

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        centers = context.centers
        return functional.center_alignment(centers.student, centers.student_bias, centers.teacher, centers.teacher_bias)
