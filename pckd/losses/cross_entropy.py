from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pckd.ops import full
from registry import LOSSES, METHODS, Term


@LOSSES.register("cross_entropy", shared=True)
def cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the student's logits with the labels; [N]. Needs no teacher."""
    return F.cross_entropy(full(student_logits), labels, reduction="none")


@METHODS.register("vanilla")
def vanilla(ce: float = 1.0) -> list[Term]:
    """Cross entropy alone: the student without a teacher."""
    return [Term("cross_entropy", ce)]
