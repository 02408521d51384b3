from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.ops import above_zero, exact, unit
from registry import LOSSES, METHODS, Term


@LOSSES.register("ckd", check=above_zero("ckd", "temperature"), compares_rows=True, needs_rows=2)
def ckd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Which image of the batch is this answer of the teacher about: contrast of the student's logits; [N].

    -log softmax over j of cos(z_t(i), z_s(j)) / temperature, at j = i (Zhu et al., arXiv 2404.14109). The logits are
    compared as directions, so that a constant added to a row counts.

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. temperature: above 0.
    """
    with exact(student_logits):
        cosines = unit(teacher_logits.detach()) @ unit(student_logits).T
    own = torch.arange(len(cosines), device=cosines.device)
    return F.cross_entropy(cosines / temperature, own, reduction="none")


@METHODS.register("ckd", paper="Zhu et al., arXiv 2404.14109", year=2024)
def ckd_method(ce: float = 1.0, weight: float = 100.0, temperature: float = 1.0) -> list[Term]:
    """Contrastive KD from a sample-wise perspective (Zhu et al. 2024): the contrast is between images of a batch.

    Published for 480 epochs with a cosine schedule (``epochs=480, schedule="cosine"``), some pairs with batches of 32.
    The row CKD of the PCKD paper's table may be another method: this one's code has neither its figures nor all of its
    pairs.

    Args:
        ce: weight of the cross entropy. weight: of the contrast. temperature: of the contrast.
    """
    return [Term("cross_entropy", ce), Term("ckd", weight, options={"temperature": temperature})]
