from __future__ import annotations

from torch import Tensor, nn

from pckd.ops import full
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


def correlation_congruence(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Correlation congruence, as its authors shared it with the CRD benchmark (Peng et al., arXiv 1904.01802); scalar.

    The paper compares kernel matrices of the batch. What was released, and gave the numbers reported since, is the
    correlation of neighbors in the batch: mean over i of <|s_i - t_i|, |s_(i+1) - t_(i+1)|>; 0 for a single image.

    Args:
        student_embedding: [B, D]. teacher_embedding: [B, D], of the same width; gradient flows into both, because
            both are projections that are learned. With the teacher's own embedding, detach it.
    """
    delta = (full(student_embedding) - full(teacher_embedding)).abs()
    return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)


@LOSSES.register("correlation_congruence")
class CorrelationCongruence(nn.Module):
    """Correlation of neighbors in the batch; scalar (Peng et al., arXiv 1904.01802, as released).

    Both embeddings are projected to ``width``; both projections are trained.
    """

    reads_maps = False
    per_sample = False
    order_matters = True
    compares_rows = True

    def __init__(self, setup: Setup, *, width: int = 128) -> None:
        super().__init__()
        if width < 1:
            raise UserError(f"correlation_congruence: width must be above 0, not {width}")
        self.embed_student = nn.Linear(setup.student.embedding, width)
        self.embed_teacher = nn.Linear(setup.teacher.embedding, width)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        teacher_embedding = self.embed_teacher(teacher.embedding.detach())
        return correlation_congruence(self.embed_student(student.embedding), teacher_embedding)


@METHODS.register("cc", paper="Peng et al., arXiv 1904.01802", year=2019)
def cc(ce: float = 1.0, weight: float = 0.02, width: int = 128) -> list[Term]:
    """Correlation congruence (Peng et al. 2019): cross entropy plus correlation between images."""
    return [Term("cross_entropy", ce), Term("correlation_congruence", weight, options={"width": width})]
