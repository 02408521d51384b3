from __future__ import annotations

from torch import Tensor

from pckd.ops import above_zero, full, unit
from registry import LOSSES, METHODS, Term


def _distance(student_logits: Tensor, teacher_logits: Tensor, temperature: float, dim: int) -> Tensor:
    """T^2 (1 - Pearson correlation of the predictions along ``dim``), T^2 where one of them is constant."""
    pair = student_logits, teacher_logits.detach()
    predictions = ((full(x) / temperature).softmax(-1).movedim(dim, -1) for x in pair)
    student, teacher = (unit(x - x.mean(-1, keepdim=True)) for x in predictions)
    return (1 - (student * teacher).sum(-1)) * temperature**2


def inter_class_relation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """L_inter of DIST: T^2 (1 - correlation of an image's predictions over the classes); [B] in [0, 2 T^2].

    How each image relates to the classes (Huang et al., arXiv 2205.10536).

    Args:
        student_logits: [B, K]. teacher_logits: [B, K]; constant. temperature: T > 0.
    """
    return _distance(student_logits, teacher_logits, temperature, 1)


def intra_class_relation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """L_intra of DIST: T^2 (1 - correlation of a class's predictions over the batch); [K], one value a class.

    How each class relates to the images of the batch (Huang et al., arXiv 2205.10536).

    Args:
        student_logits: [B, K]. teacher_logits: [B, K]; constant. temperature: T > 0.
    """
    return _distance(student_logits, teacher_logits, temperature, 0)


TEMPERATURE = 4.0
"""Of the two terms."""
CHECK = above_zero("dist", "temperature")


@LOSSES.register("dist_inter", check=CHECK, softmax=True)
def dist_inter(student_logits: Tensor, teacher_logits: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """1 - correlation, over the classes, of the two predictions of an image; [N] (Huang et al., arXiv 2205.10536)."""
    return inter_class_relation(student_logits, teacher_logits, temperature)


@LOSSES.register("dist_intra", check=CHECK, per_sample=False, softmax=True)
def dist_intra(student_logits: Tensor, teacher_logits: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """1 - correlation, over the batch, of the two predictions of a class; scalar (Huang et al., arXiv 2205.10536)."""
    return intra_class_relation(student_logits, teacher_logits, temperature).mean()


@METHODS.register("dist", paper="Huang et al., arXiv 2205.10536", year=2022)
def dist(ce: float = 1.0, beta: float = 2.0, gamma: float = 2.0, temperature: float = TEMPERATURE) -> list[Term]:
    """DIST, distillation from a stronger teacher (Huang et al. 2022): relations instead of values.

    The released code adds 1e-8 to the product of the norms, which the formula does not have: gradients differ by 3e-6.
    At temperature 1 and logits of deviation 20, where most probabilities are 0, this and a floor of 1e-6 make 11 %.

    Args:
        ce: weight of the cross entropy.
        beta: of the inter-class relation. gamma: of the intra-class relation. temperature: of both.
    """
    options = {"temperature": temperature}
    return [
        Term("cross_entropy", ce),
        Term("dist_inter", beta, options=options),
        Term("dist_intra", gamma, options=options),
    ]
