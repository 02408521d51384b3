from __future__ import annotations

from torch import Tensor

from pckd.ops import full


def localization_distillation(student_sides: Tensor, teacher_sides: Tensor, temperature: float = 10.0) -> Tensor:
    """Localization distillation (Zheng et al., arXiv 2102.12252): KL of where each side of a box is.

    It needs a detector that gives a distribution for each side, as GFL does; no network here does, so that it is no
    loss of ``LOSSES``. (The released code divides by the number of bins, too: a weight of 0.25 there is 0.25 / bins.)

    Args:
        student_sides: [N, 4, bins], logits of the four sides. teacher_sides: likewise; constant.
        temperature: above 0.

    Returns:
        [N]: T^2 times the mean divergence of the sides.
    """
    student = (full(student_sides) / temperature).log_softmax(-1)
    teacher = (full(teacher_sides.detach()) / temperature).log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1).mean(-1) * temperature**2
