from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, Context, Output, Setup, UserError


@LOSSES.register("transformed_kd")
class TransformedDistillation(nn.Module):
    """KD on the rotated views, on those the teacher is least wrong in; [N] (Xu et al., arXiv 2006.07114, L_T)."""

    needs_views = 2
    # With a ratio below 1: of two rows that the teacher gets equally wrong, the earlier one is kept.
    order_matters = True

    def __init__(self, setup: Setup, *, temperature: float = 4.0, ratio: float = 1.0) -> None:
        super().__init__()
        if not (temperature > 0 and 0 <= ratio <= 1):
            raise UserError("transformed_kd: temperature must be above 0 and ratio in [0, 1]")
        self.temperature = temperature
        self.ratio = ratio

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.transformed_kd(
            student.logits, teacher.logits, context.labels, context.views, self.temperature, self.ratio
        )
