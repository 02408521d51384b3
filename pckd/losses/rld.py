from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pckd.losses.dkd import two_way
from pckd.ops import above_zero, full
from registry import LOSSES, METHODS, Term


@LOSSES.register("rld", check=above_zero("rld", "temperature", "confidence_temperature"), softmax=True)
def rld(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    confidence_temperature: float = 1.0,
) -> Tensor:
    """Refined logits: alpha SCD + beta MCD, each times its T^2; [N] (Sun et al., arXiv 2408.07703).

    The teacher may be wrong. SCD, sample confidence, is the divergence of two-way splits: the student's probability of
    the label is to be the teacher's highest one, of whatever class. MCD, masked correlation, is the divergence over the
    classes that the teacher ranks below the label; 0 where there is none.

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. labels: [N], int64.
        alpha: weight of SCD. beta: of MCD. temperature: of MCD. confidence_temperature: of SCD.
    """
    student, teacher = full(student_logits), full(teacher_logits.detach())
    if student.shape[-1] < 2:
        return student.sum(-1) * 0.0

    def split(logits: Tensor, at: Tensor) -> Tensor:
        return two_way(logits / confidence_temperature, at)[0]

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)

    confidence = divergence(split(student, labels), split(teacher, teacher.argmax(-1)))
    left_out = teacher >= teacher.gather(-1, labels[:, None])
    some = ~left_out.all(-1)
    # Where no class is left, all are compared, and count for nothing: an empty softmax has no gradient.
    left_out = left_out & some[:, None]
    below = [(x / temperature).masked_fill(left_out, float("-inf")).log_softmax(-1) for x in (student, teacher)]
    correlation = divergence(*(x.masked_fill(left_out, 0.0) for x in below)) * some
    return alpha * confidence * confidence_temperature**2 + beta * correlation * temperature**2


@METHODS.register("rld", paper="Sun et al., arXiv 2408.07703", year=2024)
def rld_method(
    ce: float = 1.0,
    weight: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    confidence_temperature: float = 1.0,
    warmup: int = 20,
    standardize: bool = False,
) -> list[Term]:
    """Distillation with refined logits (Sun et al. 2024), with the defaults of its code for CIFAR-100.

    On ImageNet: temperature 1, warmup 1, and beta 0.5 (ResNet34 to ResNet18) or 2 (ResNet50 to MobileNetV1).

    Args:
        ce: weight of the cross entropy. weight: of the distillation term.
        alpha: of the sample confidence in it. beta: of the masked correlation.
        temperature: of the correlation. confidence_temperature: of the confidence; its README's command makes it equal.
        warmup: epochs, of 240, over which the distillation term grows to its weight.
        standardize: whether the logits are standardized first, which its code offers, too.
    """
    options = {"alpha": alpha, "beta": beta, "temperature": temperature}
    options["confidence_temperature"] = confidence_temperature
    return [Term("cross_entropy", ce), Term("rld", weight, options=options, warmup=warmup, standardize=standardize)]
