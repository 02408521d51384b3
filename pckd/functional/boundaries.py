"""Losses on maps before their activation: which neurons are on, and by how much."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pckd.functional.maps import matched, paired
from pckd.functional.numerics import full


def activation_boundary(
    student_preacts: Sequence[Tensor], teacher_preacts: Sequence[Tensor], margin: float = 1.0
) -> Tensor:
    """Transfer of activation boundaries (Heo et al., arXiv 1811.03233, the alternative loss), as in CRD's benchmark.

    A neuron that is on in the teacher should be above ``margin`` in the student, one that is off below -``margin``;
    the squared shortfall is summed over the neurons. The i-th of n layers counts 2^(i - n), all of it times 3 / 1000.

    Args:
        student_preacts: [N, C, Hs, Ws] each, after the connector; teacher_preacts: [N, C, Ht, Wt] each; constant.
            Paired from the last backwards; of two sizes the larger is average pooled.
        margin: mu.

    Returns:
        [N].
    """
    layers = []
    for pair in paired(student_preacts, teacher_preacts):
        student, teacher = matched(*pair)
        shortfall = torch.where(teacher > 0, margin - student, margin + student).relu()
        layers.append(shortfall.square().flatten(1).sum(1))
    return 3 / 1000 * _later_layers_count_more(layers)


def ofd(student_preacts: Sequence[Tensor], teacher_preacts: Sequence[Tensor], margins: Sequence[Tensor]) -> Tensor:
    """Overhaul of feature distillation: partial L2 after a margin ReLU (Heo et al., arXiv 1904.01866, d_p and sigma_m).

    The teacher's value is max(t, m). Squared differences are summed over the neurons, except where the teacher is off
    and the student already below that value. The i-th of n layers counts 2^(i - n), as in the published code.

    Args:
        student_preacts: [N, C, Hs, Ws] each, after the connector; teacher_preacts: [N, C, Ht, Wt] each; constant.
            Paired from the last backwards; of two sizes the larger is average pooled.
        margins: [C] each, not positive: m, one for each pair.

    Returns:
        [N].
    """
    layers = []
    for pair, margin in zip(paired(student_preacts, teacher_preacts), margins, strict=True):
        student, teacher = matched(*pair)
        target = torch.maximum(teacher, full(margin.detach())[:, None, None])
        counts = (student > target) | (target > 0)
        layers.append(((student - target) * counts).square().flatten(1).sum(1))
    return _later_layers_count_more(layers)


def negative_means(preact: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the negative values of each channel: E[x | x < 0], OFD's margin (arXiv 1904.01866, m_C).

    Args:
        preact: [N, C, H, W].

    Returns:
        means [C], zero where a channel has no negative value, and their counts [C].
    """
    preact = full(preact.detach())
    counts = (preact < 0).to(preact.dtype).sum((0, 2, 3))
    return preact.clamp_max(0).sum((0, 2, 3)) / counts.clamp_min(1), counts


def _later_layers_count_more(layers: Sequence[Tensor]) -> Tensor:
    return torch.stack([value / 2**later for later, value in enumerate(reversed(layers))]).sum(0)
