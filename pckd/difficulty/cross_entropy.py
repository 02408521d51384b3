from __future__ import annotations

from torch import Tensor

from pckd import functional
from registry import DIFFICULTY_METRICS, Context, Output


@DIFFICULTY_METRICS.register("cross_entropy")
def cross_entropy(student: Output, teacher: Output, context: Context) -> Tensor:
    """The student's cross entropy over its batch mean (PCKD, arXiv 2410.14143): what the student finds hard now."""
    return functional.cross_entropy_difficulty(student.logits, context.labels)
