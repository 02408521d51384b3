from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term


@LOSSES.register("rkd")
class RelationalDistillation(nn.Module):
    """Distances and angles between the batch's images; [N], one value a vertex (Park et al., arXiv 1904.05068)."""

    def __init__(self, setup: Setup, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.rkd(student.embedding, teacher.embedding, self.distance_weight, self.angle_weight)


@METHODS.register("rkd", paper="Park et al., arXiv 1904.05068", year=2019)
def rkd_method(
    ce: float = 1.0, weight: float = 1.0, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> list[Term]:
    """Relational knowledge distillation (Park et al. 2019): cross entropy plus relations of embeddings."""
    options = {"distance_weight": distance_weight, "angle_weight": angle_weight}
    return [Term("cross_entropy", ce), Term("rkd", weight, options=options)]
