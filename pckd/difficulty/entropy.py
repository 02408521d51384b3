from __future__ import annotations

from torch import Tensor

from pckd import functional
from registry import DIFFICULTY_METRICS, Context, Output


@DIFFICULTY_METRICS.register("entropy")
def entropy(student: Output, teacher: Output, context: Context) -> Tensor:
    """Entropy of the student's prediction over its batch mean: uncertainty, blind to the label."""
    log_probability = functional.full(student.logits).log_softmax(dim=-1)
    return functional.relative(-(log_probability.exp() * log_probability).sum(dim=-1).clamp_max(0))
