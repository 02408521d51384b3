from __future__ import annotations

from torch import Tensor, nn

from pckd.ops import unit
from registry import LOSSES, Context, Output, Setup


def feature_alignment(projected_student: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Feature alignment L_FA: 2 - 2 cos(P(f_s), f_t); [N] in [0, 4] (PCKD, arXiv 2410.14143, feature alignment).

    Args:
        projected_student: [N, Dt], the student's embedding after its projection P.
        teacher_embedding: [N, Dt]; constant.
    """
    return 2 - 2 * (unit(projected_student) * unit(teacher_embedding.detach())).sum(-1)


@LOSSES.register("feature_alignment")
class FeatureAlignment(nn.Module):
    """2 - 2 cos between the projected student embedding and the teacher's; [N] (PCKD, arXiv 2410.14143, L_FA).

    The projection P is Linear(Ds, expansion * Dt), BatchNorm1d, ReLU, Linear(expansion * Dt, Dt).
    """

    reads_maps = False

    def __init__(self, setup: Setup, *, expansion: int = 16) -> None:
        super().__init__()
        width = expansion * setup.teacher.embedding
        self.projection = nn.Sequential(
            nn.Linear(setup.student.embedding, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, setup.teacher.embedding),
        )

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return feature_alignment(self.projection(student.embedding), teacher.embedding)
