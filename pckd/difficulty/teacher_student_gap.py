from __future__ import annotations

from torch import Tensor

from pckd import functional
from registry import DIFFICULTY_METRICS, Context, Output


@DIFFICULTY_METRICS.register("teacher_student_gap")
def teacher_student_gap(student: Output, teacher: Output, context: Context) -> Tensor:
    """KL from teacher to student at temperature 1 over its batch mean: what the student still has to learn."""
    return functional.relative(functional.kd(student.logits, teacher.logits, temperature=1.0).clamp_min(0))
