from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, Context, Output, Setup, UserError


@LOSSES.register("center_infonce")
class CenterInfoNCE(nn.Module):
    """InfoNCE between an instance and the centers of both networks; [N] (PCKD, arXiv 2410.14143, as its figure draws).

    The student's embedding is projected once for the student's centers and once for the teacher's.
    """

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
        own, teachers = (functional.center_infonce(q, context.labels, c, self.temperature) for q, c in queries)
        return own + teachers
