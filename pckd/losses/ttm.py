"""The student, without a temperature, matches a power of the teacher's probabilities (Zheng and Yang, 2402.11148)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pckd.ops import above_zero, full
from registry import LOSSES, METHODS, Term


def power_sum(teacher_logits: Tensor, gamma: float = 0.1) -> Tensor:
    """Sum over the classes of p_t^gamma: 1 where the teacher is sure, K^(1 - gamma) where it knows nothing; [N].

    Args:
        teacher_logits: [N, K]. gamma: the exponent, in (0, 1).
    """
    return (full(teacher_logits).log_softmax(-1) * gamma).logsumexp(-1).exp()


@LOSSES.register("ttm", check=above_zero("ttm", "gamma"), softmax=True)
def ttm(student_logits: Tensor, teacher_logits: Tensor, gamma: float = 0.1) -> Tensor:
    """Transformed teacher matching: KL(softmax(gamma z_t) || softmax(z_s)); [N] (arXiv 2402.11148).

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant.
        gamma: exponent of the teacher's probabilities, which are normalized again: 1 over a temperature.
    """
    student = full(student_logits).log_softmax(-1)
    teacher = (full(teacher_logits.detach()) * gamma).log_softmax(-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


@LOSSES.register("wttm", check=above_zero("wttm", "gamma"), softmax=True)
def wttm(student_logits: Tensor, teacher_logits: Tensor, gamma: float = 0.1) -> Tensor:
    """Weighted TTM: :func:`ttm` times :func:`power_sum`, so that smooth teachers count more; [N] (arXiv 2402.11148)."""
    return power_sum(teacher_logits.detach(), gamma) * ttm(student_logits, teacher_logits, gamma)


@METHODS.register("ttm", paper="Zheng and Yang, arXiv 2402.11148", year=2024)
def ttm_method(ce: float = 1.0, weight: float = 45.0, gamma: float = 0.1) -> list[Term]:
    """Transformed teacher matching (Zheng and Yang 2024): KD without a temperature of the student.

    By default with the published weights of vgg13 to vgg8. The paper has others for other pairs, in its appendix A.4.

    Args:
        ce: weight of the cross entropy. weight: of the matching. gamma: exponent of the teacher's probabilities.
    """
    return [Term("cross_entropy", ce), Term("ttm", weight, options={"gamma": gamma})]


@METHODS.register("wttm", paper="Zheng and Yang, arXiv 2402.11148", year=2024)
def wttm_method(ce: float = 1.0, weight: float = 4.0, gamma: float = 0.2) -> list[Term]:
    """Weighted transformed teacher matching (Zheng and Yang 2024): smooth answers of the teacher count more.

    By default with the published weights of vgg13 to vgg8 beside ``crd``. The paper has others, in its appendix A.4.

    Args:
        ce: weight of the cross entropy. weight: of the matching. gamma: exponent of the teacher's probabilities.
    """
    return [Term("cross_entropy", ce), Term("wttm", weight, options={"gamma": gamma})]
