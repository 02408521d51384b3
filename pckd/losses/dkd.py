from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.ops import above_zero, full
from registry import LOSSES, METHODS, Term


def among_others(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The log softmax over all classes but the label, and the logsumexp of their logits; [N, K], [N].

    The label's own place is 0, so that it adds nothing to a divergence.

    Args:
        logits: [N, K], of at least two classes. labels: [N], int64.
    """
    is_label = F.one_hot(labels, logits.shape[-1]).bool()
    rest = logits.masked_fill(is_label, float("-inf"))
    total = rest.logsumexp(-1)
    return (rest - total[:, None]).masked_fill(is_label, 0.0), total


def two_way(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The log probabilities of the label and of all else together, [N, 2]; and :func:`among_others`, [N, K]."""
    others, total = among_others(logits, labels)
    return torch.stack([logits.gather(-1, labels[:, None])[:, 0], total], dim=-1).log_softmax(-1), others


@LOSSES.register("dkd", check=above_zero("dkd", "temperature"), softmax=True)
def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled KD: alpha TCKD + beta NCKD, times T^2; [B] (Zhao et al., arXiv 2203.08679, eq. 7).

    TCKD is the divergence of the two-way split between the label and everything else, NCKD that of the softmax over
    everything else. Both are computed from log probabilities: finite for any logits, and NCKD is zero where there
    is only one other class.

    Args:
        student_logits: [B, K]. teacher_logits: [B, K]; constant. labels: [B], int64.
        alpha: weight of TCKD. beta: weight of NCKD. temperature: T > 0.
    """
    if student_logits.shape[-1] < 2:
        return full(student_logits).sum(-1) * 0.0
    scaled = (full(logits) / temperature for logits in (student_logits, teacher_logits.detach()))
    pairs = zip(*(two_way(logits, labels) for logits in scaled), strict=True)
    tckd, nckd = (F.kl_div(s, t, reduction="none", log_target=True).sum(-1) for s, t in pairs)
    return (alpha * tckd + beta * nckd) * temperature**2


@METHODS.register("dkd", paper="Zhao et al., arXiv 2203.08679", year=2022)
def dkd_method(
    ce: float = 1.0,
    weight: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    warmup: int = 20,
    standardize: bool = False,
) -> list[Term]:
    """Decoupled knowledge distillation (Zhao et al. 2022); beta depends on the pair.

    Args:
        ce: weight of the cross entropy. weight: of the distillation term.
        alpha: of the target class in it. beta: of the other classes.
        temperature: of both. warmup: epochs, of 240, over which the distillation term grows to its weight.
        standardize: whether the logits are standardized first (Sun et al., arXiv 2403.01427): published with
            temperature 2 and weight 9 to 18.
    """
    options = {"alpha": alpha, "beta": beta, "temperature": temperature}
    return [Term("cross_entropy", ce), Term("dkd", weight, options=options, warmup=warmup, standardize=standardize)]
