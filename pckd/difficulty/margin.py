from __future__ import annotations

from torch import Tensor

from pckd import functional
from registry import DIFFICULTY_METRICS, Context, Output


@DIFFICULTY_METRICS.register("margin")
def margin(student: Output, teacher: Output, context: Context) -> Tensor:
    """How far the student's best wrong class leads the right one, in probability: (1 + p_wrong - p_label), relative."""
    probability = functional.full(student.logits).softmax(dim=-1)
    label = context.labels[:, None]
    wrong = probability.scatter(1, label, -1.0).amax(dim=1).clamp_min(0)
    return functional.relative(1 + wrong - probability.gather(1, label)[:, 0])
