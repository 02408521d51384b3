"""Distillation of standardized logits."""

from __future__ import annotations

import math

from torch import Tensor

from pckd.functional.logits import kd
from pckd.functional.numerics import full, unit


def standardize(logits: Tensor) -> Tensor:
    """Z-scores of each row: mean 0, standard deviation 1 (Sun et al., arXiv 2403.01427, algorithm 1).

    The deviation divides by K - 1, as in the released code; the paper's text divides by K. A constant row gives zeros.

    Args:
        logits: [..., K].
    """
    centered = full(logits) - full(logits).mean(-1, keepdim=True)
    return unit(centered) * math.sqrt(logits.shape[-1] - 1)


def lskd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """KD between standardized logits: blind to shift and scale of either side (Sun et al., arXiv 2403.01427).

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K]; constant.
        temperature: the base temperature tau > 0; the deviation of each row's logits multiplies it.

    Returns:
        [B]: tau^2 KL(teacher || student) of each sample.
    """
    return kd(standardize(student_logits), standardize(teacher_logits.detach()), temperature)
