"""Losses that compare maps position by position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.functional.maps import matched, paired
from pckd.functional.numerics import full

CONTEXT_SIZES = (4, 2, 1)


def hint(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """FitNets' hint: mean squared difference (Romero et al., arXiv 1412.6550, L_HT, equation 3).

    Args:
        student_map: [N, C, Hs, Ws], after the regressor; teacher_map: [N, C, Ht, Wt]; constant. Of two sizes the
            larger is average pooled.

    Returns:
        [N].
    """
    student, teacher = matched(student_map, teacher_map)
    return (student - teacher).square().flatten(1).mean(1)


def vid(predicted_mean: Tensor, target: Tensor, log_scale: Tensor, eps: float = 1e-5) -> Tensor:
    """Variational information distillation (Ahn et al., arXiv 1904.05835, -log q(t|s)).

    Negative log-likelihood, up to a constant, of the teacher's map under a Gaussian whose mean the student predicts:
    ((t - mu)^2 / var + log var) / 2, with one var = log(1 + exp(log_scale)) + eps a channel; mean over C, H and W.

    Args:
        predicted_mean: [N, C, Hs, Ws], mu; target: [N, C, Ht, Wt]; constant. Of two sizes the larger is average
            pooled.
        log_scale: [C]. eps: the least variance.

    Returns:
        [N].
    """
    mean, target = matched(predicted_mean, target)
    variance = (F.softplus(full(log_scale)) + eps)[:, None, None]
    return ((mean - target).square() / variance + variance.log()).flatten(1).mean(1) / 2


def hierarchical_context(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """ReviewKD's hierarchical context loss (Chen et al., arXiv 2104.09044, HCL).

    Mean squared differences of the maps and of their averages on grids of 4, 2 and 1 (those smaller than the map);
    the map counts 1, each grid half of what precedes it, over their sum. Layers are summed.

    Args:
        student_maps: [N, C, Hs, Ws] each, after the fusion; teacher_maps: [N, C, Ht, Wt] each; constant. Paired from
            the last backwards; of two sizes the larger is average pooled.

    Returns:
        [N].
    """
    layers = []
    for pair in paired(student_maps, teacher_maps):
        student, teacher = matched(*pair)
        scales = [(student, teacher)]
        for size in CONTEXT_SIZES:
            if size < student.shape[2]:
                scales.append((F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)))
        shares = [2.0**-i for i in range(len(scales))]
        errors = [share * hint(*scale) for share, scale in zip(shares, scales, strict=True)]
        layers.append(torch.stack(errors).sum(0) / sum(shares))
    return torch.stack(layers).sum(0)
