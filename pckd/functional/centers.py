"""Losses around category centers: by default, row k of a classifier's weight is the center of category k.

Shapes: N rows, K classes, Ds and Dt the student's and the teacher's embedding widths.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.functional.numerics import exact, full, unit
from pckd.functional.ranks import gather_rows, gather_rows_with_gradient, own_rows, world_size


def center_alignment(
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
) -> Tensor:
    """Center alignment L_CA: mean squared difference of [W_s, b_s] and [W_t, b_t] (PCKD, arXiv 2410.14143).

    Args:
        student_weight: [K, D]; teacher_weight: [K, D], the same D; constant.
        student_bias: [K] or None; teacher_bias: [K] or None; constant. Compared only where both are given.

    Returns:
        scalar.

    Raises:
        ValueError: the widths differ; :func:`center_relation` works for any two widths.
    """
    if student_weight.shape != teacher_weight.shape:
        raise ValueError(
            f"center_alignment needs centers of one shape, got {tuple(student_weight.shape)} and "
            f"{tuple(teacher_weight.shape)}; center_relation works for any two widths"
        )
    student, teacher = full(student_weight), full(teacher_weight.detach())
    if student_bias is not None and teacher_bias is not None:
        student = torch.cat([student, full(student_bias)[:, None]], dim=1)
        teacher = torch.cat([teacher, full(teacher_bias.detach())[:, None]], dim=1)
    return F.mse_loss(student, teacher)


def center_relation(student_centers: Tensor, teacher_centers: Tensor) -> Tensor:
    """Mean squared difference of the two K x K matrices of cosine similarities between centers.

    Our alternative to :func:`center_alignment` where the widths differ; not part of the published method.

    Args:
        student_centers: [K, Ds]; teacher_centers: [K, Dt]; constant.

    Returns:
        scalar.
    """
    with exact(student_centers):
        student, teacher = unit(student_centers), unit(teacher_centers.detach())
        return F.mse_loss(student @ student.T, teacher @ teacher.T)


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
    """Category contrast L_CC, as in PCKD's released training step (arXiv 2410.14143).

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

    Returns:
        [N].
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
            others = own_rows(places)[:, None] != places
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


def center_infonce(student_embedding: Tensor, labels: Tensor, centers: Tensor, temperature: float = 0.07) -> Tensor:
    """Instance-to-center InfoNCE: -log softmax_k(cos(q, W_k) / temperature) at the label.

    The reading of category contrast that the paper's figure draws (PCKD, arXiv 2410.14143): a feature attracts the
    center of its own category and repels the others.

    Args:
        student_embedding: [N, D]; normalized here.
        labels: [N].
        centers: [K, D]; normalized here.

    Returns:
        [N].
    """
    with exact(student_embedding):
        cosines = unit(student_embedding) @ unit(centers).T
        return F.cross_entropy(cosines / temperature, labels, reduction="none")
