"""Losses about how the images of a batch relate to each other in the two embedding spaces.

Shapes: B images, Ds and Dt the student's and the teacher's embedding widths.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.functional.numerics import NORM_FLOOR, exact, full, unit


def rkd(
    student_embedding: Tensor, teacher_embedding: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """Relational knowledge distillation: Huber loss of distances and of angles (Park et al., arXiv 1904.05068).

    Distances are |x_i - x_j| over their mean in the batch (the paper's psi_D with its mu); angles are
    cos(x_j - x_i, x_k - x_i), image i at the vertex (psi_A). Value i is the mean over image i's pairs and triplets.

    Args:
        student_embedding: [B, Ds].
        teacher_embedding: [B, Dt]; constant.
        distance_weight: of the distances. angle_weight: of the angles.

    Returns:
        [B].
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


def pkt(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Probabilistic knowledge transfer: match who is near whom (Passalis and Tefas, arXiv 1803.10837).

    p(j | i) = K(x_i, x_j) / sum_k K(x_i, x_k) with the kernel K = (cos + 1) / 2, image i itself included as in the
    authors' code. Value i is sum_j p_t(j | i) log(p_t(j | i) / p_s(j | i)) / B, so that the mean over the batch is the
    mean over all pairs.

    Args:
        student_embedding: [B, Ds].
        teacher_embedding: [B, Dt]; constant.

    Returns:
        [B].
    """
    with exact(student_embedding):
        student, teacher = (_neighbors(x) for x in (student_embedding, teacher_embedding.detach()))
        return (teacher * torch.log((teacher + 1e-7) / (student + 1e-7))).mean(dim=1)


def _neighbors(x: Tensor) -> Tensor:
    x = unit(x)
    # Rounding may put a cosine slightly below -1.
    kernel = ((x @ x.T + 1) / 2).clamp_min(0)
    return kernel / kernel.sum(dim=1, keepdim=True)


def correlation_congruence(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Correlation congruence, as its authors shared it with the CRD benchmark (Peng et al., arXiv 1904.01802).

    The paper compares kernel matrices of the batch. What was released, and gave the numbers reported since, is the
    correlation of neighbors in the batch: mean over i of <|s_i - t_i|, |s_(i+1) - t_(i+1)|>.

    Args:
        student_embedding: [B, D]. teacher_embedding: [B, D], of the same width; gradient flows into both, because
            both are projections that are learned. With the teacher's own embedding, detach it.

    Returns:
        scalar; 0 for a single image.
    """
    delta = (full(student_embedding) - full(teacher_embedding)).abs()
    return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)
