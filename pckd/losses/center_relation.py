from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pckd.ops import exact, unit
from registry import LOSSES


@LOSSES.register("center_relation", per_sample=False)
def center_relation(student_centers: Tensor, teacher_centers: Tensor) -> Tensor:
    """Mean squared difference of the two K x K matrices of cosine similarities between centers; scalar.

    Our alternative to :func:`center_alignment` where the widths differ; not part of the published method.

    Args:
        student_centers: [K, Ds]; teacher_centers: [K, Dt]; constant.
    """
    with exact(student_centers):
        student, teacher = unit(student_centers), unit(teacher_centers.detach())
        return F.mse_loss(student @ student.T, teacher @ teacher.T)
