"""Predictions aligned at the level of instance, batch and class (Jin et al., Multi-Level Logit Distillation, 2023).

Shapes: N rows, K classes. Each level is summed over several temperatures ("prediction augmentation").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pckd.functional.logits import kd
from pckd.functional.numerics import exact, full

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
"""As published for CIFAR-100."""


def instance_alignment(
    student_logits: Tensor, teacher_logits: Tensor, temperatures: Sequence[float] = TEMPERATURES
) -> Tensor:
    """Instance level, L_ins: KD summed over temperatures (Jin et al., CVPR 2023).

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. temperatures: at least one.

    Returns:
        [N].
    """
    return torch.stack([kd(student_logits, teacher_logits, temperature) for temperature in temperatures]).sum(0)


def batch_alignment(
    student_logits: Tensor, teacher_logits: Tensor, temperatures: Sequence[float] = TEMPERATURES
) -> Tensor:
    """Batch level, L_batch: squared difference of the Gram matrices P P^T (Jin et al., CVPR 2023).

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. temperatures: at least one.

    Returns:
        [N]: row i sums over the samples that i is compared with, so that the mean is the published loss
        ||P_s P_s^T - P_t P_t^T||^2 / N, summed over temperatures.
    """
    with exact(student_logits):
        per_temperature = []
        for temperature in temperatures:
            student = (full(student_logits) / temperature).softmax(-1)
            teacher = (full(teacher_logits.detach()) / temperature).softmax(-1)
            per_temperature.append((student @ student.T - teacher @ teacher.T).square().sum(1))
        return torch.stack(per_temperature).sum(0)


def class_alignment(
    student_logits: Tensor, teacher_logits: Tensor, temperatures: Sequence[float] = TEMPERATURES
) -> Tensor:
    """Class level, L_class: squared difference of the matrices P^T P (Jin et al., CVPR 2023).

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. temperatures: at least one.

    Returns:
        [K]: one value a class, whose mean is the published loss ||P_s^T P_s - P_t^T P_t||^2 / K, summed over
        temperatures.
    """
    with exact(student_logits):
        per_temperature = []
        for temperature in temperatures:
            student = (full(student_logits) / temperature).softmax(-1)
            teacher = (full(teacher_logits.detach()) / temperature).softmax(-1)
            per_temperature.append((student.T @ student - teacher.T @ teacher).square().sum(1))
        return torch.stack(per_temperature).sum(0)


def unsure_share(teacher_logits: Tensor, per_class: bool = False) -> Tensor:
    """Share of the images (or classes) of which the teacher is at most as sure as of the median one: about a half.

    Jin et al.'s released code masks by this, but on losses already reduced to a scalar, so that the mask acts as its
    mean.

    Args:
        teacher_logits: [N, K]. per_class: whether to compare classes, by their summed probability, instead of
            images, by their highest.

    Returns:
        scalar in (0, 1]; without gradient.
    """
    probability = full(teacher_logits.detach()).softmax(-1)
    sure = probability.sum(0) if per_class else probability.amax(-1)
    return (sure <= sure.quantile(0.5)).to(sure.dtype).mean()
