"""Losses about transformed views of each image (Xu et al., arXiv 2006.07114, SSKD: here rotations).

Shapes: B images, V views of each, N = B * V rows (image-major, view 0 upright), R = B * (V - 1) transformed rows. Where
images are shown in one view only, that view stands for its own transformation: R = B.

What compares transformed rows returns [N] all the same: 0 in the upright rows and in those left out, and the others
scaled so that the mean over the N rows is the mean over the rows that take part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.functional.logits import kd
from pckd.functional.numerics import exact, full, unit


def _transformed(x: Tensor, views: int) -> Tensor:
    return x.unflatten(0, (-1, views))[:, 1:].flatten(0, 1) if views > 1 else x


def _over_all_rows(values: Tensor, kept: Tensor, views: int) -> Tensor:
    values = torch.where(kept, values, 0.0)
    if views > 1:
        values = F.pad(values.unflatten(0, (-1, views - 1)), (1, 0)).flatten()
    return values * (len(values) / kept.sum().clamp_min(1))


def view_similarity(embedding: Tensor, views: int) -> Tensor:
    """Cosine of every transformed row with every image's upright row: SSKD's matrix A.

    Args:
        embedding: [N, D], of the self-supervision head. views: V.

    Returns:
        [R, B].
    """
    with exact(embedding):
        embedding = unit(embedding)
        return _transformed(embedding, views) @ embedding[::views].T


def _own_images(similarity: Tensor) -> Tensor:
    images = torch.arange(similarity.shape[1], device=similarity.device)
    return images.repeat_interleave(len(similarity) // len(images))


def view_contrast(embedding: Tensor, views: int) -> Tensor:
    """Which image is this the transformation of: -log softmax_j(A_ij) at the own image, as SSKD trains its head.

    The published code has no temperature here.

    Args:
        embedding: [N, D], of the self-supervision head. views: V.

    Returns:
        [N].
    """
    similarity = view_similarity(embedding, views)
    own = _own_images(similarity)
    return _over_all_rows(F.cross_entropy(similarity, own, reduction="none"), torch.ones_like(own).bool(), views)


def reliable(scores: Tensor, targets: Tensor, ratio: float) -> Tensor:
    """SSKD's selective transfer: the rows that a teacher gets right, and of the others the share it is least wrong in.

    A row's error is the rank of its target among the row's scores; of equal errors the earlier row goes first.

    Args:
        scores: [R, C]. targets: [R]. ratio: in [0, 1], the share of the wrong rows that is kept, rounded down.

    Returns:
        bool [R].
    """
    rank = (scores > scores.gather(1, targets[:, None])).sum(dim=1)
    wrong = (rank > 0).sum()
    position = rank.argsort(stable=True).argsort()
    # The tolerance keeps a product such as 10 * 0.7 from being rounded below the integer that it is.
    return position - (len(rank) - wrong) + 1 <= wrong * ratio + 1e-3


def transformed_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    views: int,
    temperature: float = 4.0,
    ratio: float = 1.0,
) -> Tensor:
    """Knowledge distillation on the transformed rows, SSKD's L_T: T^2 KL(softmax(z_t / T) || softmax(z_s / T)).

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. labels: [N]. views: V.
        temperature: T. ratio: see :func:`reliable`; by the teacher's rank of the label.

    Returns:
        [N].
    """
    student, teacher = (_transformed(x, views) for x in (student_logits, teacher_logits.detach()))
    kept = reliable(full(teacher), _transformed(labels, views), ratio)
    return _over_all_rows(kd(student, teacher, temperature), kept, views)


def similarity_transfer(
    student_embedding: Tensor, teacher_embedding: Tensor, views: int, temperature: float = 0.5, ratio: float = 0.75
) -> Tensor:
    """SSKD's L_ss: T^2 KL between the rows of the two networks' :func:`view_similarity`, softened by T.

    Args:
        student_embedding: [N, Ds], of the student's self-supervision head.
        teacher_embedding: [N, Dt], of the teacher's; constant. views: V.
        temperature: T. ratio: see :func:`reliable`; by the teacher's rank of the own image.

    Returns:
        [N].
    """
    student, teacher = (view_similarity(x, views) for x in (student_embedding, teacher_embedding.detach()))
    kept = reliable(teacher, _own_images(teacher), ratio)
    return _over_all_rows(kd(student, teacher, temperature), kept, views)
