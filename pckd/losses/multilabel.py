"""Images that show several classes: each class is a question of its own, answered by the sigmoid of its logit.

Shapes: N rows, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from pckd.ops import above_zero, full
from registry import LOSSES, METHODS, Term


@LOSSES.register("binary_cross_entropy", shared=True)
def binary_cross_entropy(student_logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Mean over the classes of the binary cross entropy; [N]. Needs no teacher.

    In the task ``multilabel`` it stands in the place of every method's cross entropy.

    Args:
        student_logits: [N, K]. labels: [N]. targets: [N, K], 0 to 1, in the place of the labels.
    """
    if targets is None:
        targets = F.one_hot(labels, student_logits.shape[1]).to(full(student_logits).dtype)
    return F.binary_cross_entropy_with_logits(full(student_logits), targets, reduction="none").mean(-1)


@LOSSES.register("binary_kd", check=above_zero("binary_kd", "temperature"))
def binary_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Multi-label logit distillation: T^2 times the mean over the classes of the binary KL; [N].

    KL(Bernoulli(sigmoid(t_k / T)) || Bernoulli(sigmoid(s_k / T))), one class against the rest (MLD of Yang et al.,
    arXiv 2308.06453). The released code sums over the classes and has no temperature.

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. temperature: T > 0.
    """
    student, teacher = full(student_logits) / temperature, full(teacher_logits.detach()) / temperature
    p = teacher.sigmoid()
    # In logarithms, which stay finite where a probability rounds to 0 or 1.
    for_it = p * (F.logsigmoid(teacher) - F.logsigmoid(student))
    against = (1 - p) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return (for_it + against).mean(-1) * temperature**2


@METHODS.register("multilabel_kd", paper="Yang et al., arXiv 2308.06453", year=2023)
def multilabel_kd(ce: float = 1.0, weight: float = 1.0, temperature: float = 1.0) -> list[Term]:
    """Multi-label logit distillation (Yang et al. 2023): a supervised term plus each class against the rest.

    Their label-wise embedding distillation is not part of it. The weights are not theirs.
    """
    return [Term("cross_entropy", ce), Term("binary_kd", weight, options={"temperature": temperature})]
