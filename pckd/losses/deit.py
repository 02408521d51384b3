from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pckd.ops import full
from registry import LOSSES, METHODS, Term


@LOSSES.register("hard_kd", softmax=True)
def hard_kd(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross entropy with the class that the teacher finds most probable; [B] (Touvron et al., arXiv 2012.12877, eq. 3).

    Args:
        student_logits: [B, K]. teacher_logits: [B, K]; constant.
    """
    return F.cross_entropy(full(student_logits), teacher_logits.detach().argmax(-1), reduction="none")


@METHODS.register("deit", paper="Touvron et al., arXiv 2012.12877", year=2021)
def deit(ce: float = 0.5, weight: float = 0.5, temperature: float = 0.0, head: str = "", token: str = "") -> list[Term]:
    """Data-efficient image transformers (Touvron et al. 2021): the distillation token learns what the teacher says.

    The network answers with the mean of its two heads. Where it has one head, that learns both.

    Args:
        ce: weight of the cross entropy, which the class token's head learns.
        weight: of the teacher's answer, which the distillation token's head learns.
        temperature: 0 for the teacher's most probable class; otherwise that of :func:`pckd.losses.kd.kd`, in the paper
            3 with weight 0.1 and ce 0.9. The released code divides this loss by the number of classes, too.
        head, token: paths of the two heads: ``"head"`` and ``"head_dist"`` of timm's ``deit_*_distilled``.
    """
    taught = f"kd(temperature={temperature})" if temperature else "hard_kd"
    return [Term("cross_entropy", ce, head=head), Term(taught, weight, head=token)]
