from __future__ import annotations

import torch
from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


def head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


@LOSSES.register("self_supervision")
class SelfSupervision(nn.Module):
    """Which image is this a rotation of, as the teacher's head sees it; [N] (Xu et al., arXiv 2006.07114, L_ss).

    In the initial epochs the teacher's head is trained on the frozen teacher's embeddings; afterwards it is frozen, and
    the student with its own head learns the teacher's similarities between views.

    Args:
        temperature: of the similarities. ratio: share of the rows kept of those that the teacher's head gets wrong.
    """

    needs_views = 2
    # Of two rows that the teacher's head gets equally wrong, the earlier one is kept.
    order_matters = True

    def __init__(self, setup: Setup, *, temperature: float = 0.5, ratio: float = 0.75) -> None:
        super().__init__()
        if not (temperature > 0 and 0 <= ratio <= 1):
            raise UserError("self_supervision: temperature must be above 0 and ratio in [0, 1]")
        self.temperature, self.ratio = temperature, ratio
        self.student_head = head(setup.student.embedding)
        self.teacher_head = head(setup.teacher.embedding)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        if context.stage == "initial":
            return functional.view_contrast(self.teacher_head(teacher.embedding.detach()), context.views)
        with torch.no_grad():
            target = self.teacher_head(teacher.embedding)
        embedding = self.student_head(student.embedding)
        return functional.similarity_transfer(embedding, target, context.views, self.temperature, self.ratio)


@METHODS.register("sskd", paper="Xu et al., arXiv 2006.07114", year=2020)
def sskd(
    ce: float = 0.1,
    kd: float = 0.9,
    transformed: float = 2.7,
    similarity: float = 10.0,
    temperature: float = 4.0,
    similarity_temperature: float = 0.5,
    ratio: float = 0.75,
) -> list[Term]:
    """Distillation meets self-supervision (Xu et al. 2020): KD on all rotations plus similarities between views.

    60 epochs that train the teacher's self-supervision head come first; here at a constant learning rate.
    """
    options = {"temperature": similarity_temperature, "ratio": ratio}
    return [
        Term("cross_entropy", ce),
        Term("kd", kd, options={"temperature": temperature}),
        Term("transformed_kd", transformed, views="all", options={"temperature": temperature}),
        Term("self_supervision", similarity, views="all", initial=60, initial_weight=1.0, options=options),
    ]
