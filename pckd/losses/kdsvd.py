from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


@LOSSES.register("kdsvd")
class SingularVectors(nn.Module):
    """Difference of how the stages' first singular vectors relate; [N] (Lee et al., arXiv 1807.06819)."""

    def __init__(self, setup: Setup, *, k: int = 1) -> None:
        super().__init__()
        student, teacher = setup.student.maps[1:], setup.teacher.maps[1:]
        functional.paired_shapes("kdsvd", student, teacher, least=2, same_widths=True)
        if k < 1:
            raise UserError(f"kdsvd: k must be at least 1, not {k}")
        self.k = k

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.kdsvd(student.maps[1:], teacher.maps[1:], self.k)


@METHODS.register("kdsvd", paper="Lee et al., arXiv 1807.06819", year=2018)
def kdsvd(ce: float = 1.0, weight: float = 1.0, k: int = 1) -> list[Term]:
    """Distillation by singular value decomposition (Lee et al. 2018): cross entropy plus k singular vectors a stage."""
    return [Term("cross_entropy", ce), Term("kdsvd", weight, options={"k": k})]
