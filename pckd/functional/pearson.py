"""Relations that survive a linear rescaling: Pearson correlation of predictions."""

from __future__ import annotations

from torch import Tensor

from pckd.functional.numerics import full, unit


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - Pearson correlation of each row; 1 where a row is constant."""
    student, teacher = (unit(x - x.mean(-1, keepdim=True)) for x in (student, teacher))
    return 1 - (student * teacher).sum(-1)


def inter_class_relation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """L_inter of DIST: how each image relates to the classes (Huang et al., arXiv 2205.10536).

    Args:
        student_logits: [B, K]. teacher_logits: [B, K]; constant. temperature: T > 0.

    Returns:
        [B]: T^2 (1 - correlation over the classes of the two predictions), in [0, 2 T^2].
    """
    student = (full(student_logits) / temperature).softmax(-1)
    teacher = (full(teacher_logits.detach()) / temperature).softmax(-1)
    return _distance(student, teacher) * temperature**2


def intra_class_relation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """L_intra of DIST: how each class relates to the images of the batch (Huang et al., arXiv 2205.10536).

    Args:
        student_logits: [B, K]. teacher_logits: [B, K]; constant. temperature: T > 0.

    Returns:
        [K]: T^2 (1 - correlation over the batch of the two columns of predictions), one value a class.
    """
    student = (full(student_logits) / temperature).softmax(-1)
    teacher = (full(teacher_logits.detach()) / temperature).softmax(-1)
    return _distance(student.T, teacher.T) * temperature**2
