from __future__ import annotations

from torch import Tensor

from pckd.losses.dkd import among_others
from pckd.ops import above_zero, full
from registry import LOSSES, METHODS, Term


def target_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """-p_t(label) log p_s(label): cross entropy by how sure of the label the teacher is; [N].

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. labels: [N], int64.
    """
    student, teacher = full(student_logits).log_softmax(-1), full(teacher_logits.detach()).softmax(-1)
    return -(teacher * student).gather(-1, labels[:, None])[:, 0]


@LOSSES.register("nkd", check=above_zero("nkd", "temperature"), softmax=True)
def nkd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """Normalized KD: -p_t(y) log p_s(y) - gamma T^2 sum over k != y of q_t(k) log q_s(k); [N] (arXiv 2303.13005).

    q is the softmax over the classes other than y, at the temperature. A cross entropy, so that it is not 0 where the
    student answers as its teacher.

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. labels: [N], int64, the y of each row.
        gamma: weight of the other classes. temperature: T > 0, of the other classes.
    """
    target = target_cross_entropy(student_logits, teacher_logits, labels)
    if student_logits.shape[-1] < 2:
        return target
    logits = student_logits, teacher_logits.detach()
    student, teacher = (among_others(full(x) / temperature, labels)[0] for x in logits)
    return target - gamma * temperature**2 * (teacher.exp() * student).sum(-1)


@METHODS.register("nkd", paper="Yang et al., arXiv 2303.13005", year=2023)
def nkd_method(ce: float = 1.0, weight: float = 1.0, gamma: float = 1.5, temperature: float = 1.0) -> list[Term]:
    """Normalized knowledge distillation (Yang et al. 2023), with the weights of its ResNets on ImageNet.

    Args:
        ce: weight of the cross entropy. weight: of the distillation term.
        gamma: of the classes other than the label in it; 1 for DeiT. temperature: of these classes.
    """
    return [Term("cross_entropy", ce), Term("nkd", weight, options={"gamma": gamma, "temperature": temperature})]
