from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pckd.ops import above_zero, full
from registry import LOSSES, METHODS, Term


@LOSSES.register("kd", check=above_zero("kd", "temperature"), softmax=True)
def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """Knowledge distillation: T^2 KL(softmax(z_t / T) || softmax(z_s / T)); [B] (Hinton et al., arXiv 1503.02531).

    Args:
        student_logits: [B, K]. teacher_logits: [B, K]; constant. temperature: T > 0.
    """
    return softened(student_logits, teacher_logits, temperature)


def softened(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """:func:`kd` at a temperature that may be a tensor, with a gradient."""
    student = F.log_softmax(full(student_logits) / temperature, dim=-1)
    teacher = F.log_softmax(full(teacher_logits.detach()) / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2


@METHODS.register("kd", paper="Hinton et al., arXiv 1503.02531", year=2015)
def kd_method(ce: float = 1.0, weight: float = 1.0, temperature: float = 4.0, standardize: bool = False) -> list[Term]:
    """Knowledge distillation (Hinton et al. 2015): cross entropy plus softened logits.

    The tables of CIFAR-100 weigh cross entropy by 0.1 and KD by 0.9: ``kd(ce=0.1, weight=0.9)``. Both are 1 here.

    Args:
        ce: weight of the cross entropy. weight: of KD. temperature: of both networks.
        standardize: whether the logits are standardized first, as in ``lskd``, which has the published weights.
    """
    return [
        Term("cross_entropy", ce),
        Term("kd", weight, options={"temperature": temperature}, standardize=standardize),
    ]
