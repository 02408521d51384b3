from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pckd.ops import full
from registry import LOSSES, METHODS, Term


@LOSSES.register("cross_entropy", shared=True)
def cross_entropy(
    student_logits: Tensor,
    labels: Tensor,
    targets: Tensor | None,
    sample_weights: Tensor | None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of the student's logits with the labels; [N]. Needs no teacher.

    Args:
        student_logits: [N, K]. labels: [N]. targets: [N, K], probabilities in the place of the labels.
        sample_weights: [N], what each row counts.
        label_smoothing: share of the probability that is spread evenly over all classes.
    """
    wanted = labels if targets is None else targets
    values = F.cross_entropy(full(student_logits), wanted, reduction="none", label_smoothing=label_smoothing)
    return values if sample_weights is None else values * sample_weights


@METHODS.register("vanilla")
def vanilla(ce: float = 1.0) -> list[Term]:
    """Cross entropy alone: the student without a teacher."""
    return [Term("cross_entropy", ce)]
