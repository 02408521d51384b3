from __future__ import annotations

import torch
from torch import Tensor, nn

from pckd.ops import full
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError

EPSILON = 1e-4
"""Added to each variance, as released."""


def log_sum_distance(student_embedding: Tensor, teacher_embedding: Tensor, exponent: float = 4.0) -> Tensor:
    """log of the sum of |s - t|^exponent, each channel normalized over the batch; scalar (arXiv 2303.11098).

    Args:
        student_embedding: [N, D], projected to the teacher's width. teacher_embedding: [N, D]; constant.
    """

    def normalized(x: Tensor) -> Tensor:
        centered = full(x) - full(x).mean(0)
        return centered * (centered.square().mean(0) + EPSILON).rsqrt()

    difference = normalized(student_embedding) - normalized(teacher_embedding.detach())
    total = difference.abs().pow(exponent).sum()
    return total.clamp_min(torch.finfo(total.dtype).tiny).log()


@LOSSES.register("srd")
class SimpleRecipe(nn.Module):
    """Distance of the embeddings through a linear projector and batch norms; scalar (Miles et al., arXiv 2303.11098).

    Args:
        exponent: of the distances.
    """

    reads_maps = False
    per_sample = False
    needs_rows = 2
    compares_rows = True

    def __init__(self, setup: Setup, *, exponent: float = 4.0) -> None:
        super().__init__()
        if not exponent >= 1:
            raise UserError(f"srd: exponent must be 1 or above, not {exponent}")
        self.exponent = exponent
        self.embed = nn.Linear(setup.student.embedding, setup.teacher.embedding)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return log_sum_distance(self.embed(student.embedding), teacher.embedding, self.exponent)


@METHODS.register("srd", paper="Miles and Mikolajczyk, arXiv 2303.11098", year=2023)
def srd(
    ce: float = 1.0, kd: float = 1.0, weight: float = 2.0, temperature: float = 1.0, exponent: float = 4.0
) -> list[Term]:
    """Simple recipe distillation (Miles and Mikolajczyk 2023): cross entropy, KD and projected embeddings.

    Weights are those of the released run on ImageNet; nothing is released for CIFAR-100.
    """
    return [
        Term("cross_entropy", ce),
        Term("kd", kd, options={"temperature": temperature}),
        Term("srd", weight, options={"exponent": exponent}),
    ]
