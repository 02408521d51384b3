from __future__ import annotations

from torch import Tensor

from pckd import functional
from registry import DIFFICULTY_METRICS, Context, Output


@DIFFICULTY_METRICS.register("teacher_cross_entropy")
def teacher_cross_entropy(student: Output, teacher: Output, context: Context) -> Tensor:
    """The teacher's cross entropy over its batch mean: what a trained network finds hard, the same at every epoch."""
    return functional.cross_entropy_difficulty(teacher.logits, context.labels)
