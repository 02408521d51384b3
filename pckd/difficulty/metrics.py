"""Difficulty metrics: how hard each image of a batch is, over the mean of the batch.

Shapes: B images, K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.losses.kd import kd
from pckd.losses.ttm import power_sum
from pckd.ops import full, relative
from registry import DIFFICULTY_METRICS


@DIFFICULTY_METRICS.register("cross_entropy")
def cross_entropy_difficulty(student_logits: Tensor, labels: Tensor) -> Tensor:
    """The student's cross entropy over its batch mean (PCKD, arXiv 2410.14143): what the student finds hard now.

    gamma_i = CE_i / mean_j CE_j, PCKD's difficulty of an instance; [B], without gradient, all zero when every cross
    entropy is exactly zero.

    Args:
        student_logits: [B, K], of the upright views. labels: [B].
    """
    return relative(F.cross_entropy(full(student_logits.detach()), labels, reduction="none"))


@DIFFICULTY_METRICS.register
def teacher_cross_entropy(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """The teacher's cross entropy over its batch mean: what a trained network finds hard, the same at every epoch."""
    return cross_entropy_difficulty(teacher_logits, labels)


@DIFFICULTY_METRICS.register
def entropy(student_logits: Tensor) -> Tensor:
    """Entropy of the student's prediction over its batch mean: uncertainty, blind to the label."""
    return relative(_entropy(student_logits))


def _entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    log_probability = (full(logits) / temperature).log_softmax(dim=-1)
    return -(log_probability.exp() * log_probability).sum(dim=-1).clamp_max(0)


@DIFFICULTY_METRICS.register
def ea_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 3.0) -> Tensor:
    """EA-KD's weight over its batch mean, (H_t + H_t H_s / log K) / 2: both networks are unsure (arXiv 2311.13621).

    H are the entropies of the predictions of teacher and student at the temperature. The paper multiplies the loss by
    the weight itself, as the scheduler ``proportional`` does but for the mean. Its code for KD and DKD on CIFAR-100 has
    100 for log 100.

    Args:
        student_logits: [B, K]. teacher_logits: [B, K]. temperature: T > 0.
    """
    student, teacher = (_entropy(logits, temperature) for logits in (student_logits, teacher_logits))
    return relative(teacher * (1 + student / math.log(max(student_logits.shape[-1], 2))) / 2)


@DIFFICULTY_METRICS.register
def wttm(teacher_logits: Tensor, gamma: float = 0.1) -> Tensor:
    """WTTM's weight over its batch mean, the sum of p_t^gamma: how smooth the teacher's answer is (arXiv 2402.11148).

    The paper multiplies the loss by the weight itself, as the scheduler ``proportional`` does but for the mean.

    Args:
        teacher_logits: [B, K]. gamma: the exponent; the smaller, the more alike all images are.
    """
    return relative(power_sum(teacher_logits, gamma))


@DIFFICULTY_METRICS.register
def margin(student_logits: Tensor, labels: Tensor) -> Tensor:
    """How far the student's best wrong class leads the right one, in probability: (1 + p_wrong - p_label), relative."""
    probability = full(student_logits).softmax(dim=-1)
    label = labels[:, None]
    wrong = probability.scatter(1, label, -1.0).amax(dim=1).clamp_min(0)
    return relative(1 + wrong - probability.gather(1, label)[:, 0])


@DIFFICULTY_METRICS.register
def teacher_student_gap(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL from teacher to student at temperature 1 over its batch mean: what the student still has to learn."""
    return relative(kd(student_logits, teacher_logits, temperature=1.0).clamp_min(0))


@DIFFICULTY_METRICS.register
def group_cross_entropy(student_logits: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """The student's cross entropy over the mean of its row's group: objects by objects, background by background.

    Among all regions of an image the many easy ones of the background make every object hard. Where a task has no
    groups this is :func:`cross_entropy_difficulty`.

    Args:
        student_logits: [N, K]. labels: [N]. group: [N], int64.

    Returns:
        [N], non-negative, with mean 1 in each group.
    """
    losses = F.cross_entropy(full(student_logits.detach()), labels, reduction="none")
    same = (group[:, None] == group).to(losses.dtype)
    mean = same @ losses / same.sum(1)
    return losses / torch.where(mean > 0, mean, 1.0)
