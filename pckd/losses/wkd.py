from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.losses.nkd import target_cross_entropy
from pckd.ops import PUBLISHED_EPOCHS, above_zero, exact, full, published_epoch, unit
from registry import LOSSES, METHODS, Context, Setup, Term, UserError

REGULARIZATION, ITERATIONS, FLOOR = 0.05, 10, 1e-8
"""Of Sinkhorn's algorithm, as released."""


def class_costs(centers: Tensor, sharpness: float = 1.0) -> Tensor:
    """How far classes are from each other: 1 - exp(-sharpness (1 - cos)) of their centers, at least 1e-8; [K, K].

    Args:
        centers: [K, D]; constant.
    """
    with exact(centers):
        cosines = unit(centers.detach()) @ unit(centers.detach()).T
    return (1 - torch.exp(-sharpness * (1 - cosines))).clamp_min(0) + FLOOR


def wasserstein(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, costs: Tensor, temperature: float = 8.0
) -> Tensor:
    """Cost of moving the student's probabilities of the wrong classes to the teacher's, by Sinkhorn's algorithm; [N].

    Both are softmaxes over the classes other than the label (Lv et al., arXiv 2412.08139). The entropic regularization
    is 0.05, so that the cost of moving nothing is a little above 0.

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. labels: [N], int64.
        costs: [K, K], of moving from a class of the student's to one of the teacher's. temperature: T > 0.
    """
    if student_logits.shape[-1] < 2:
        return full(student_logits).sum(-1) * 0.0
    is_label = F.one_hot(labels, student_logits.shape[-1]).bool()
    logits = student_logits, teacher_logits.detach()
    ours, theirs = ((full(x) / temperature).masked_fill(is_label, float("-inf")).softmax(-1) for x in logits)
    with exact(ours):
        kernel = torch.exp(-costs / REGULARIZATION).to(ours.dtype)
        # A class without mass has a scale of 0 and takes no part: here the label.
        scale = (~is_label).to(ours.dtype) / (ours.shape[-1] - 1)
        other = scale
        for _ in range(ITERATIONS):
            other = theirs / (scale @ kernel + FLOOR)
            scale = ours / (other @ kernel.T + FLOOR)
        return (scale @ (kernel * costs) * other).sum(-1)


def _check(setup: Setup, **given: Any) -> None:
    above_zero("wkd", "temperature", "sharpness")(setup, **given)
    if given["decay"] is not None and not 0 <= given["decay"] < PUBLISHED_EPOCHS:
        raise UserError(f"wkd: decay must be an epoch from 0 to {PUBLISHED_EPOCHS - 1}, or None, not {given['decay']}")


@LOSSES.register("wkd", check=_check, softmax=True)
def wkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    teacher_centers: Tensor,
    context: Context,
    gamma: float = 600.0,
    temperature: float = 8.0,
    sharpness: float = 1.0,
    decay: int | None = 150,
) -> Tensor:
    """WKD-L: NKD's term of the label plus gamma :func:`wasserstein` over the others; [N] (Lv et al., 2412.08139).

    Classes are as far apart as the teacher's centers: by default the rows of its classifier, which the released code
    offers as the cost ``fc``.

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. labels: [N], int64.
        teacher_centers: [K, D]; constant. context: says the epoch.
        gamma: weight of the distance. temperature: of the distance. sharpness: of :func:`class_costs`.
        decay: epoch, of 240, from which gamma falls to 0 as a cosine; None leaves it.
    """
    target = target_cross_entropy(student_logits, teacher_logits, labels)
    distance = wasserstein(student_logits, teacher_logits, labels, class_costs(teacher_centers, sharpness), temperature)
    if decay is not None:
        passed = max(0.0, (published_epoch(context) - decay) / (PUBLISHED_EPOCHS - decay))
        gamma *= (1 + math.cos(math.pi * passed)) / 2
    return target + gamma * distance


@METHODS.register("wkd", paper="Lv et al., arXiv 2412.08139", year=2024)
def wkd_method(
    ce: float = 1.0,
    weight: float = 1.0,
    gamma: float = 600.0,
    temperature: float = 8.0,
    sharpness: float = 1.0,
    decay: int | None = 150,
) -> list[Term]:
    """WKD-L, a Wasserstein distance of logits (Lv et al. 2024): what it costs to move probability between classes.

    The published figures measure how alike classes are by the CKA of all training images' features, computed before the
    training; here, as in the released option ``fc``, it is the cosine of the teacher's centers.

    Args:
        ce: weight of the cross entropy. weight: of the distillation term.
        gamma: of the distance in it. temperature: of the distance. sharpness: of the costs.
        decay: epoch, of 240, from which gamma falls to 0 as a cosine.
    """
    options = {"gamma": gamma, "temperature": temperature, "sharpness": sharpness, "decay": decay}
    return [Term("cross_entropy", ce), Term("wkd", weight, options=options)]
