from __future__ import annotations

import math

from torch import Tensor

from pckd.losses.kd import kd
from pckd.ops import above_zero, full, unit
from registry import LOSSES, METHODS, Term


def standardize(logits: Tensor) -> Tensor:
    """Z-scores of each row: mean 0, standard deviation 1 (Sun et al., arXiv 2403.01427, algorithm 1).

    The deviation divides by K - 1, as in the released code; the paper's text divides by K. A constant row gives zeros.

    Args:
        logits: [..., K].
    """
    centered = full(logits) - full(logits).mean(-1, keepdim=True)
    return unit(centered) * math.sqrt(logits.shape[-1] - 1)


@LOSSES.register("lskd", check=above_zero("lskd", "temperature"), softmax=True)
def lskd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """KD between standardized logits: blind to shift and scale of either side; [B] (Sun et al., arXiv 2403.01427).

    Args:
        student_logits: [B, K]. teacher_logits: [B, K]; constant.
        temperature: the base temperature tau > 0; the deviation of each row's logits multiplies it.
    """
    return kd(standardize(student_logits), standardize(teacher_logits.detach()), temperature)


@METHODS.register("lskd", paper="Sun et al., arXiv 2403.01427", year=2024)
def lskd_method(ce: float = 0.1, weight: float = 9.0, temperature: float = 2.0) -> list[Term]:
    """KD with logit standardization (Sun et al. 2024); ``temperature`` is the base temperature.

    The released code adds 1e-7 to the deviation, which the formula does not have: values and gradients differ by 2e-7.
    """
    return [Term("cross_entropy", ce), Term("lskd", weight, options={"temperature": temperature})]
