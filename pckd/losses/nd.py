from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd.distributed import gather_rows
from pckd.ops import NORM_FLOOR, exact, full, unit
from registry import LOSSES, METHODS, Context, Output, Setup, Term


def norm_and_direction(
    student_embedding: Tensor, teacher_embedding: Tensor, labels: Tensor, teacher_centers: Tensor
) -> Tensor:
    """1 - s . e / max(|s|, |t|), with e the unit center of the row's class; [N] (Wang et al., arXiv 2305.17007, ND).

    So a student's embedding is to be as long as its teacher's at least, and to point where its class lies.

    Args:
        student_embedding, teacher_embedding: [N, D] each; the teacher's is a constant. labels: [N].
        teacher_centers: [K, D]; constant. In the paper the teacher's class means.

    Raises:
        ValueError: the widths differ.
    """
    if student_embedding.shape[1] != teacher_embedding.shape[1]:
        raise ValueError(
            f"norm_and_direction needs embeddings of one width, got {student_embedding.shape[1]} and "
            f"{teacher_embedding.shape[1]}: project the student's first"
        )
    student, teacher = full(student_embedding), full(teacher_embedding.detach())
    length = torch.maximum(student.norm(dim=1), teacher.norm(dim=1)).clamp_min(NORM_FLOOR)
    return 1 - (student * unit(teacher_centers.detach())[labels]).sum(1) / length


@LOSSES.register("nd")
class NormAndDirection(nn.Module):
    """How far the embedding falls short of its class's direction in the teacher; [N] (Wang et al., arXiv 2305.17007).

    The centers are the means of the teacher's embeddings that the run has seen so far, by class and of all processes.
    (The release takes those of the training set, made beforehand.) Where the widths differ, the student's embedding
    goes through BatchNorm1d, Dropout(0.5) and Linear, as released.

    Args:
        rule: take the teacher's centers of the run's center rule instead, by default its classifier's rows.
    """

    reads_maps = False
    means: Tensor
    counts: Tensor

    def __init__(self, setup: Setup, *, rule: bool = False) -> None:
        super().__init__()
        self.rule = rule
        own, width = setup.student.embedding, setup.teacher.embedding
        self.project: nn.Module = nn.Identity()
        if own != width:
            self.project = nn.Sequential(nn.BatchNorm1d(own), nn.Dropout(0.5), nn.Linear(own, width))
        self.register_buffer("means", torch.zeros(setup.student.num_classes, width))
        self.register_buffer("counts", torch.zeros(setup.student.num_classes))

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        target = teacher.embedding.detach()
        centers = context.centers.teacher if self.rule else self._means(target, context.labels)
        return norm_and_direction(self.project(student.embedding), target, context.labels, centers)

    @torch.no_grad()
    def _means(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """With those of this step [N, D], [N]; they are kept in training alone."""
        member = F.one_hot(gather_rows(labels), len(self.counts)).to(self.means.dtype)
        counts = self.counts + member.sum(0)
        with exact(embedding):
            difference = member.T @ full(gather_rows(embedding)) - member.sum(0)[:, None] * self.means
        means = self.means + difference / counts.clamp_min(1)[:, None]
        if self.training:
            self.means.copy_(means)
            self.counts.copy_(counts)
        return means


@METHODS.register("nd", paper="Wang et al., arXiv 2305.17007", year=2023)
def nd(ce: float = 1.0, weight: float = 1.0, rule: bool = False) -> list[Term]:
    """Norm and direction (Wang et al. 2023), to be added to another method: ``dkd+nd`` is the paper's DKD++.

    Args:
        ce: weight of the cross entropy. weight: of the loss; published 0.5 to 4, by method and pair.
        rule: see the loss ``nd``.
    """
    return [Term("cross_entropy", ce), Term("nd", weight, options={"rule": True} if rule else {})]


@METHODS.register("kd_plus_plus", paper="Wang et al., arXiv 2305.17007", year=2023)
def kd_plus_plus(
    ce: float = 1.0, kd: float = 1.0, weight: float = 2.0, temperature: float = 4.0, warmup: int = 20
) -> list[Term]:
    """KD++ (Wang et al. 2023): cross entropy and KD, with a warm-up, plus norm and direction of the embedding.

    The release counts the warm-up's epochs from 0, and trains with Nesterov's momentum, batches of 128 and a rate of
    0.1 (0.02 for the students that others train at 0.01).
    """
    return [
        Term("cross_entropy", ce),
        Term("kd", kd, warmup=warmup, options={"temperature": temperature}),
        Term("nd", weight),
    ]
