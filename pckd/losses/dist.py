from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


@LOSSES.register("dist_inter")
class InterClassRelation(nn.Module):
    """1 - correlation, over the classes, of the two predictions of an image; [N] (Huang et al., arXiv 2205.10536)."""

    def __init__(self, setup: Setup, *, temperature: float = 4.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(f"dist: temperature must be above 0, not {temperature}")
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.inter_class_relation(student.logits, teacher.logits, self.temperature)


@LOSSES.register("dist_intra")
class IntraClassRelation(InterClassRelation):
    """1 - correlation, over the batch, of the two predictions of a class; scalar (Huang et al., arXiv 2205.10536)."""

    per_sample = False

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.intra_class_relation(student.logits, teacher.logits, self.temperature).mean()


@METHODS.register("dist", paper="Huang et al., arXiv 2205.10536", year=2022)
def dist(ce: float = 1.0, beta: float = 2.0, gamma: float = 2.0, temperature: float = 4.0) -> list[Term]:
    """DIST, distillation from a stronger teacher (Huang et al. 2022): relations instead of values.

    Args:
        ce: weight of the cross entropy.
        beta: of the inter-class relation. gamma: of the intra-class relation. temperature: of both.
    """
    options = {"temperature": temperature}
    return [
        Term("cross_entropy", ce),
        Term("dist_inter", beta, options=options),
        Term("dist_intra", gamma, options=options),
    ]
