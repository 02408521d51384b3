from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


@LOSSES.register("dkd")
class DecoupledKD(nn.Module):
    """KD of the target class and of the other classes, weighted apart; [N] (Zhao et al., arXiv 2203.08679)."""

    def __init__(self, setup: Setup, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(f"dkd: temperature must be above 0, not {temperature}")
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.dkd(student.logits, teacher.logits, context.labels, self.alpha, self.beta, self.temperature)


@METHODS.register("dkd", paper="Zhao et al., arXiv 2203.08679", year=2022)
def dkd_method(
    ce: float = 1.0,
    weight: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    warmup: int = 20,
) -> list[Term]:
    """Decoupled knowledge distillation (Zhao et al. 2022); beta depends on the pair.

    Args:
        ce: weight of the cross entropy. weight: of the distillation term.
        alpha: of the target class in it. beta: of the other classes.
        temperature: of both. warmup: epochs, of 240, over which the distillation term grows to its weight.
    """
    options = {"alpha": alpha, "beta": beta, "temperature": temperature}
    return [Term("cross_entropy", ce), Term("dkd", weight, options=options, warmup=warmup)]
