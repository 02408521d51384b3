from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.ops import NORM_FLOOR, exact, full, unit
from registry import LOSSES, METHODS, Term


@LOSSES.register("rkd", compares_rows=True)
def rkd(
    student_embedding: Tensor, teacher_embedding: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Relational knowledge distillation: Huber loss of distances and of angles; [B] (Park et al., arXiv 1904.05068).

    Distances are |x_i - x_j| over their mean in the batch (the paper's psi_D with its mu); angles are
    cos(x_j - x_i, x_k - x_i), image i at the vertex (psi_A). Value i is the mean over image i's pairs and triplets.

    Args:
        student_embedding: [B, Ds]. teacher_embedding: [B, Dt]; constant.
        distance_weight: of the distances. angle_weight: of the angles.
    """
    with exact(student_embedding):
        student, teacher = _differences(student_embedding), _differences(teacher_embedding.detach())
        distances = F.smooth_l1_loss(_relative_lengths(student), _relative_lengths(teacher), reduction="none")
        student, teacher = unit(student), unit(teacher)
        angles = F.smooth_l1_loss(student @ student.mT, teacher @ teacher.mT, reduction="none")
        return distance_weight * distances.mean(dim=1) + angle_weight * angles.mean(dim=(1, 2))


def _differences(x: Tensor) -> Tensor:
    """[B, D] to [B, B, D]: entry (i, j) is x_j - x_i."""
    x = full(x)
    return x[None, :] - x[:, None]


def _relative_lengths(differences: Tensor) -> Tensor:
    """[B, B, D] to [B, B]: lengths over the mean length between two different images."""
    lengths = torch.linalg.vector_norm(differences, dim=-1)
    pairs = len(lengths) * (len(lengths) - 1)
    return lengths / (lengths.sum() / max(pairs, 1)).clamp_min(NORM_FLOOR)


@METHODS.register("rkd", paper="Park et al., arXiv 1904.05068", year=2019)
def rkd_method(
    ce: float = 1.0, weight: float = 1.0, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> list[Term]:
    """Relational knowledge distillation (Park et al. 2019): cross entropy plus relations of embeddings."""
    options = {"distance_weight": distance_weight, "angle_weight": angle_weight}
    return [Term("cross_entropy", ce), Term("rkd", weight, options=options)]
