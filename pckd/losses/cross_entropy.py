from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pckd.functional.numerics import full
from registry import LOSSES, Context, Output, Setup


@LOSSES.register("cross_entropy")
class CrossEntropy(nn.Module):
    """Cross entropy of the student's logits with the labels; [N]. Needs no teacher."""

    needs_teacher = False

    def __init__(self, setup: Setup) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return F.cross_entropy(full(student.logits), context.labels, reduction="none")
