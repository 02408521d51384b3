from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pckd.ops import exact, unit
from registry import LOSSES, Context, Output, Setup, UserError


def center_infonce(student_embedding: Tensor, labels: Tensor, centers: Tensor, temperature: float = 0.07) -> Tensor:
    """Instance-to-center InfoNCE: -log softmax_k(cos(q, W_k) / temperature) at the label; [N].

    The reading of category contrast that the paper's figure draws (PCKD, arXiv 2410.14143): a feature attracts the
    center of its own category and repels the others.

    Args:
        student_embedding: [N, D]; normalized here. labels: [N]. centers: [K, D]; normalized here.
    """
    with exact(student_embedding):
        cosines = unit(student_embedding) @ unit(centers).T
        return F.cross_entropy(cosines / temperature, labels, reduction="none")


@LOSSES.register("center_infonce")
class CenterInfoNCE(nn.Module):
    """InfoNCE between an instance and the centers of both networks; [N] (PCKD, arXiv 2410.14143, as its figure draws).

    The student's embedding is projected once for the student's centers and once for the teacher's.
    """

    reads_maps = False

    def __init__(self, setup: Setup, *, temperature: float = 0.07) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(f"center_infonce: temperature must be above 0, not {temperature}")
        self.temperature = temperature
        self.student_query = nn.Linear(setup.student.embedding, setup.student.embedding)
        self.teacher_query = nn.Linear(setup.student.embedding, setup.teacher.embedding)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        queries = (
            (self.student_query(student.embedding), context.centers.student),
            (self.teacher_query(student.embedding), context.centers.teacher.detach()),
        )
        own, teachers = (center_infonce(q, context.labels, c, self.temperature) for q, c in queries)
        return own + teachers
