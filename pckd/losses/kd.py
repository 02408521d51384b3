from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, Context, Output, Setup, UserError


@LOSSES.register("kd")
class KnowledgeDistillation(nn.Module):
    """T^2 KL between softened teacher and student predictions; [N] (Hinton et al., arXiv 1503.02531)."""

    def __init__(self, setup: Setup, *, temperature: float = 4.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(f"kd: temperature must be above 0, not {temperature}")
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.kd(student.logits, teacher.logits, self.temperature)
