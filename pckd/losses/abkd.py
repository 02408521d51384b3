from __future__ import annotations

from typing import Any

from torch import Tensor

from pckd.ops import above_zero, full
from registry import LOSSES, METHODS, Setup, Term, UserError


def _check(setup: Setup, **given: Any) -> None:
    above_zero("abkd", "temperature")(setup, **given)
    if not given["alpha"] + given["beta"] > 0:
        raise UserError(f"abkd: alpha + beta must be above 0, not {given['alpha']} + {given['beta']}")


@LOSSES.register("abkd", check=_check, softmax=True)
def abkd(
    student_logits: Tensor, teacher_logits: Tensor, alpha: float = 0.8, beta: float = 0.3, temperature: float = 4.0
) -> Tensor:
    """T^2 times the alpha-beta divergence of the predictions p of the teacher and q of the student; [N].

    -1 / (a b) sum of p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b) (Wang et al., arXiv 2505.04560); where one
    of the two is 0, its limit. With (1, 0) this is KD, with (0, 1) KD in the other direction. The released code has no
    T^2.

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant.
        alpha: sets how much large errors count. beta: how much the student's own confidence does. Their sum is above 0.
        temperature: T > 0.
    """
    q, p = ((full(x) / temperature).log_softmax(-1) for x in (student_logits, teacher_logits.detach()))
    total = alpha + beta
    if alpha == 0 or beta == 0:
        (one, other) = (q, p) if alpha == 0 else (p, q)
        value = (one * total).exp() * (total * (one - other) - 1) + (other * total).exp()
        return value.sum(-1) * (temperature / total) ** 2
    value = alpha / total * (p * total).exp() + beta / total * (q * total).exp() - (alpha * p + beta * q).exp()
    return value.sum(-1) * temperature**2 / (alpha * beta)


@METHODS.register("abkd", paper="Wang et al., arXiv 2505.04560", year=2025)
def abkd_method(
    ce: float = 1.0, weight: float = 4.0, alpha: float = 0.8, beta: float = 0.3, temperature: float = 4.0
) -> list[Term]:
    """KD with an alpha-beta divergence (Wang et al. 2025), with the command that its code has for resnet56 to resnet20.

    Args:
        ce: weight of the cross entropy. weight: of the divergence; the command's 64 over T^2.
        alpha, beta: of the divergence; the paper searches sums of 1 and 1.1 per pair. temperature: of both networks.
    """
    options = {"alpha": alpha, "beta": beta, "temperature": temperature}
    return [Term("cross_entropy", ce), Term("abkd", weight, options=options)]
