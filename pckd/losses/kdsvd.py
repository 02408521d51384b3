from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pckd.losses.maps import paired, paired_shapes
from pckd.ops import NORM_FLOOR, exact, full, unit
from registry import LOSSES, METHODS, Setup, Term, UserError

GAP_FLOOR = 1e-5
"""Singular values (over the largest) and differences of their squares count as about this where they are smaller."""


def check(setup: Setup, *, k: int) -> None:
    paired_shapes("kdsvd", setup.student.maps[1:], setup.teacher.maps[1:], least=2, same_widths=True)
    if k < 1:
        raise UserError(f"kdsvd: k must be at least 1, not {k}")


@LOSSES.register("kdsvd", inputs=("student_stages", "teacher_stages"), check=check)
def kdsvd(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], k: int = 1) -> Tensor:
    """Distillation by singular value decomposition (Lee et al., arXiv 1807.06819), as in CRD's benchmark; [N].

    A map, as a matrix of positions by channels, is described by its first k right singular vectors, those of the
    student being the ones, of k + 3, nearest to the teacher's, with their signs. All are scaled by the teacher's
    singular values. Between consecutive layers exp(-(v_i - w_j)^2 / 8) is compared: sum of squared differences.

    Args:
        student_maps: [N, C, H, W] each; teacher_maps: [N, C, H', W'] each, of the same widths; constant. Paired from
            the last backwards.
        k: number of singular vectors, at least 1.
    """
    described = []
    for student_map, teacher_map in paired(student_maps, teacher_maps):
        with exact(student_map):
            scale, teacher = (x[..., :k] for x in _decompose(teacher_map.detach()))
            student = _aligned(_decompose(student_map)[1][..., : k + 3], teacher)
            described.append([v * unit(scale)[:, None] for v in (student, teacher)])
    layers = []
    for before, now in pairwise(described):
        pairs = zip(now, before, strict=True)
        by_student, by_teacher = (torch.exp(-(v[:, :, None] - w[:, None]).square() / 8) for v, w in pairs)
        layers.append((by_student - by_teacher).square().sum((1, 2, 3)))
    return torch.stack(layers).sum(0)


def _decompose(feature_map: Tensor) -> tuple[Tensor, Tensor]:
    # A map that is not finite fails the run through the student's own terms; the decomposition would raise.
    values, vectors = _RightVectors.apply(full(feature_map).nan_to_num(0, 0, 0).flatten(2).mT)
    return values, vectors


def _aligned(student: Tensor, teacher: Tensor) -> Tensor:
    """For each of the teacher's vectors [N, C, k] the student's that is nearest to it or to its opposite."""
    cosines = student.detach().mT @ teacher
    nearest = cosines.abs().argmax(1, keepdim=True)
    return student.gather(2, nearest.expand(-1, student.shape[1], -1)) * cosines.gather(1, nearest).sign()


class _RightVectors(torch.autograd.Function):
    """Singular values [N, R] and right singular vectors [N, C, R] of [N, M, C]; gradient through the vectors only.

    The derivative has 1 / (s_j^2 - s_i^2) and 1 / s_i in it. Both are softened below :data:`GAP_FLOOR`, so that equal
    or zero singular values give a finite gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        ctx.save_for_backward(u, s, vh)
        ctx.mark_non_differentiable(s)
        return s, vh.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        u, s, vh = ctx.saved_tensors
        largest = s.amax(1)[:, None, None].clamp_min(NORM_FLOOR)
        relative = s[:, :, None] / largest
        squares = relative.square()
        gaps = squares.mT - squares
        with exact(s):
            inner = vh @ grads[1]
            rotation = relative * (gaps / (gaps.square() + GAP_FLOOR**2)) * (inner - inner.mT)
            outside = (grads[1] - vh.mT @ inner).mT * relative / (squares + GAP_FLOOR**2)
            gradient: Tensor = u @ (rotation @ vh + outside) / largest
        return gradient


@METHODS.register("kdsvd", paper="Lee et al., arXiv 1807.06819", year=2018)
def kdsvd_method(ce: float = 1.0, weight: float = 1.0, k: int = 1) -> list[Term]:
    """Distillation by singular value decomposition (Lee et al. 2018): cross entropy plus k singular vectors a stage.

    Where singular values are close the gradient is softened, so that it stays finite. It differs from that of CRD's
    benchmark by 1e-10 for k = 1, and by 1e-5 for k = 2; the values are the same.
    """
    return [Term("cross_entropy", ce), Term("kdsvd", weight, options={"k": k})]
