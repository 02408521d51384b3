from __future__ import annotations

import torch
from torch import Tensor, nn

from pckd.distributed import gather_rows, gather_rows_with_gradient, own_rows, world_size
from pckd.ops import exact, full, unit
from registry import LOSSES, Context, Output, Setup, UserError


def category_contrast(
    student_query: Tensor,
    teacher_query: Tensor,
    labels: Tensor,
    student_centers: Tensor,
    teacher_centers: Tensor,
    temperature: float = 4.0,
    base_temperature: float = 0.07,
    gather: bool = False,
) -> Tensor:
    """Category contrast L_CC, as in PCKD's released training step (arXiv 2410.14143); [N].

    Each instance is described by how it relates to every category center: u = [q_s W_s^T ; q_t W_t^T], [2N, K].
    Rows of the same label attract each other: supervised contrast over the 2N anchors with logits u u^T / temperature,
    self excluded. The value of row n is the sum of its two anchors' losses.

    Args:
        student_query: [N, Ds], the student's embedding projected for the student's centers; normalized here.
        teacher_query: [N, Dt], the student's embedding projected for the teacher's centers; normalized here.
        labels: [N].
        student_centers: [K, Ds]; gradient flows into them. teacher_centers: [K, Dt]; constant.
        temperature: tau, of the anchors' logits.
        base_temperature: the loss is scaled by temperature / base_temperature.
        gather: where several processes train together, contrast with the rows of all of them; not published.
    """
    with exact(student_query):
        relation = torch.cat(
            [unit(student_query) @ full(student_centers).T, unit(teacher_query) @ full(teacher_centers.detach()).T]
        )
        anchors = labels.repeat(2)
        everyone, everyones = relation, anchors
        others = ~torch.eye(relation.shape[0], dtype=torch.bool, device=relation.device)
        if gather and world_size() > 1:
            everyone, everyones = gather_rows_with_gradient(relation), gather_rows(anchors)
            places = torch.arange(len(everyones), device=relation.device)
            others = own_rows(places, len(anchors))[:, None] != places
        logits = relation @ everyone.T / temperature
        # The maximum is taken with the anchor itself, as published: it only matters through the 1e-7 below.
        logits = logits - logits.detach().amax(dim=1, keepdim=True)
        positives = (anchors[:, None] == everyones[None, :]) & others
        partition = (logits.exp() * others).sum(dim=1, keepdim=True)
        log_probability = logits - torch.log(partition + 1e-7)
        # An anchor always has its other half as a positive, so the count is at least 1.
        mean_positive = (log_probability * positives).sum(dim=1) / positives.sum(dim=1)
        per_anchor = -(temperature / base_temperature) * mean_positive
        student_half, teacher_half = per_anchor.chunk(2)
        return student_half + teacher_half


@LOSSES.register("category_contrast")
class CategoryContrast(nn.Module):
    """Contrast of how instances relate to all category centers; [N] (PCKD, arXiv 2410.14143, L_CC as released).

    Both queries are projections of the student's embedding; the teacher enters through its centers.

    Args:
        temperature: of the anchors' logits. base_temperature: the loss is scaled by temperature / base_temperature.
        gather: contrast with the rows of all processes that train together, not of each one's own.
    """

    reads_maps = False

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
        return category_contrast(
            self.student_query(student.embedding),
            self.teacher_query(student.embedding),
            context.labels,
            context.centers.student,
            context.centers.teacher,
            self.temperature,
            self.base_temperature,
            self.gather,
        )
