"""Losses that compare similarities: between the samples of a batch, or between the neurons of a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pckd.functional.maps import matched, paired
from pckd.functional.numerics import exact, full, unit


def similarity_preserving(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Similarity-preserving distillation (Tung & Mori, arXiv 1907.09682, L_SP).

    G = Q Q^T of the flattened maps, each row scaled to length 1. The published loss ||G_t - G_s||^2 / N^2 is the mean
    of these values: row n holds what the similarities of sample n to the batch contribute.

    Args:
        student_map: [N, ...]; teacher_map: [N, ...]; constant.

    Returns:
        [N].
    """
    with exact(student_map):
        student, teacher = (unit(q @ q.T) for q in (full(m).flatten(1) for m in (student_map, teacher_map.detach())))
        return (student - teacher).square().mean(1)


def nst(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Neuron selectivity transfer, L_MMD^2 with the polynomial kernel (Huang & Wang, arXiv 1707.01219).

    Squared maximum mean discrepancy between the channels of the two maps, each a unit vector over the positions, with
    k(a, b) = (a^T b)^2. Layers are summed.

    Args:
        student_maps: [N, Cs, Hs, Ws] each; teacher_maps: [N, Ct, Ht, Wt] each; constant. Paired from the last
            backwards; of two sizes the larger is average pooled.

    Returns:
        [N].
    """
    layers = []
    for pair in paired(student_maps, teacher_maps):
        student, teacher = (unit(m.flatten(2)) for m in matched(*pair))
        layers.append(_kernel(teacher, teacher) + _kernel(student, student) - 2 * _kernel(student, teacher))
    return torch.stack(layers).sum(0)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    with exact(a):
        return (a @ b.mT).square().mean((1, 2))
