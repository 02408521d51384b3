from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, Context, Output, Setup


@LOSSES.register("center_relation")
class CenterRelation(nn.Module):
    """Match the cosine similarities between centers; scalar. Ours, for pairs whose embedding widths differ."""

    per_sample = False

    def __init__(self, setup: Setup) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.center_relation(context.centers.student, context.centers.teacher)
