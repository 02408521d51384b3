from __future__ import annotations

import torch
from torch import Tensor, nn

from pckd.ops import exact, full, unit
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


def channel_agreement(student_embedding: Tensor, teacher_embedding: Tensor, alpha: float = 1.5) -> Tensor:
    """log2 of the sum over channels of |1 - c|^(2 alpha), with c the channel's correlation over the batch; scalar.

    L_corr of ITRD (Miles et al., arXiv 2112.00459). As released, c is (N - 1) / N of Pearson's correlation.

    Args:
        student_embedding, teacher_embedding: [N, D] each; the teacher's is a constant. alpha: Renyi's order.
    """
    centered = [full(x) - full(x).mean(0) for x in (student_embedding, teacher_embedding.detach())]
    student, teacher = (unit(x.T) for x in centered)
    correlation = (student * teacher).sum(1) * ((len(centered[0]) - 1) / len(centered[0]))
    total = (1 - correlation).abs().pow(2 * alpha).sum()
    return total.clamp_min(torch.finfo(total.dtype).tiny).log2()


def similarity_agreement(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Sum of G_s^2 - (G_s * G_t)^2, over N^2, with G a network's cosines between the rows of a batch; scalar.

    L_mi of ITRD (Miles et al., arXiv 2112.00459): what the student finds alike and the teacher does not.

    Args:
        student_embedding: [N, Ds]. teacher_embedding: [N, Dt]; constant.
    """
    student, teacher = unit(student_embedding), unit(teacher_embedding.detach())
    with exact(student):
        own, theirs = student @ student.T, teacher @ teacher.T
    return (own.square() * (1 - theirs.square()).clamp_min(0)).sum() / len(own) ** 2


@LOSSES.register("itrd")
class InformationTheoretic(nn.Module):
    """Correlated channels, and similarities that the teacher has, too; scalar (Miles et al., arXiv 2112.00459).

    The correlation looks at the student's embedding through a linear layer of the teacher's width; the similarities do
    so where the widths differ, as released.

    Args:
        correlation, mutual: weights of the two parts. alpha: of :func:`channel_agreement`.
    """

    reads_maps = False
    per_sample = False
    needs_rows = 2
    compares_rows = True

    def __init__(self, setup: Setup, *, correlation: float = 2.0, mutual: float = 0.05, alpha: float = 1.5) -> None:
        super().__init__()
        if not alpha >= 0.5:
            raise UserError(f"itrd: alpha must be 0.5 or above, not {alpha}")
        self.correlation, self.mutual, self.alpha = correlation, mutual, alpha
        self.embed = nn.Linear(setup.student.embedding, setup.teacher.embedding)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        own, target = self.embed(student.embedding), teacher.embedding
        compared = student.embedding if student.embedding.shape == target.shape else own
        correlation = channel_agreement(own, target, self.alpha)
        return self.correlation * correlation + self.mutual * similarity_agreement(compared, target)


@METHODS.register("itrd", paper="Miles et al., arXiv 2112.00459", year=2021)
def itrd(
    ce: float = 1.0, weight: float = 1.0, correlation: float = 2.0, mutual: float = 0.05, alpha: float = 1.5
) -> list[Term]:
    """Information-theoretic representation distillation (Miles et al. 2021): cross entropy plus the two losses.

    The defaults are those of the released script; its example for wrn_40_2 and wrn_16_2 has mutual 1 and alpha 1.01.
    """
    options = {"correlation": correlation, "mutual": mutual, "alpha": alpha}
    return [Term("cross_entropy", ce), Term("itrd", weight, options=options)]
