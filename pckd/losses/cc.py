from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


@LOSSES.register("correlation_congruence")
class CorrelationCongruence(nn.Module):
    """Correlation of neighbors in the batch; scalar (Peng et al., arXiv 1904.01802, as released).

    Both embeddings are projected to ``width``; both projections are trained.
    """

    per_sample = False
    order_matters = True

    def __init__(self, setup: Setup, *, width: int = 128) -> None:
        super().__init__()
        if width < 1:
            raise UserError(f"correlation_congruence: width must be above 0, not {width}")
        self.embed_student = nn.Linear(setup.student.embedding, width)
        self.embed_teacher = nn.Linear(setup.teacher.embedding, width)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        teacher_embedding = self.embed_teacher(teacher.embedding.detach())
        return functional.correlation_congruence(self.embed_student(student.embedding), teacher_embedding)


@METHODS.register("cc", paper="Peng et al., arXiv 1904.01802", year=2019)
def cc(ce: float = 1.0, weight: float = 0.02, width: int = 128) -> list[Term]:
    """Correlation congruence (Peng et al. 2019): cross entropy plus correlation between images."""
    return [Term("cross_entropy", ce), Term("correlation_congruence", weight, options={"width": width})]
