from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, Context, Output, Setup, UserError


@LOSSES.register("category_contrast")
class CategoryContrast(nn.Module):
    """Contrast of how instances relate to all category centers; [N] (PCKD, arXiv 2410.14143, L_CC as released).

    Both queries are projections of the student's embedding; the teacher enters through its centers.

    Args:
        temperature: of the anchors' logits. base_temperature: the loss is scaled by temperature / base_temperature.
        gather: contrast with the rows of all processes that train together, not of each one's own.
    """

    def __init__(
        self, setup: Setup, *, temperature: float = 4.0, base_temperature: float = 0.07, gather: bool = False
    ) -> None:
        super().__init__()
        if not (temperature > 0 and base_temperature > 0):
            raise UserError("category_contrast: temperature and base_temperature must be above 0")
        self.temperature = temperature
        self.base_temperature = base_temperature
        self.gather = gather
        self.student_query = nn.Linear(setup.student.embedding, setup.student.embedding)
        self.teacher_query = nn.Linear(setup.student.embedding, setup.teacher.embedding)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.category_contrast(
            self.student_query(student.embedding),
            self.teacher_query(student.embedding),
            context.labels,
            context.centers.student,
            context.centers.teacher,
            self.temperature,
            self.base_temperature,
            self.gather,
        )
