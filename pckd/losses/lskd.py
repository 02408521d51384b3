from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


@LOSSES.register("lskd")
class LogitStandardization(nn.Module):
    """KD between logits standardized sample by sample; [N] (Sun et al., arXiv 2403.01427)."""

    def __init__(self, setup: Setup, *, temperature: float = 2.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(f"lskd: temperature must be above 0, not {temperature}")
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.lskd(student.logits, teacher.logits, self.temperature)


@METHODS.register("lskd", paper="Sun et al., arXiv 2403.01427", year=2024)
def lskd_method(ce: float = 0.1, weight: float = 9.0, temperature: float = 2.0) -> list[Term]:
    """KD with logit standardization (Sun et al. 2024); ``temperature`` is the base temperature."""
    return [Term("cross_entropy", ce), Term("lskd", weight, options={"temperature": temperature})]
