"""Losses that compare where two networks look: maps whose channels are summed up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pckd.functional.maps import matched, paired
from pckd.functional.numerics import unit


def attention_transfer(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], p: float = 2) -> Tensor:
    """Attention transfer (Zagoruyko & Komodakis, arXiv 1612.03928, L_AT with F^p_sum), as in CRD's benchmark.

    The attention map of a layer is mean_c |A_c|^p, as a vector over the positions of length 1. The mean, not the sum,
    of the squared differences over the positions is taken, and the layers are summed.

    Args:
        student_maps: [N, Cs, Hs, Ws] each; teacher_maps: [N, Ct, Ht, Wt] each; constant. Paired from the last
            backwards; of two sizes the larger is average pooled.
        p: the power, at least 1.

    Returns:
        [N].
    """
    layers = []
    for pair in paired(student_maps, teacher_maps):
        student, teacher = (_attention(m, p) for m in matched(*pair))
        layers.append((student - teacher).square().mean(1))
    return torch.stack(layers).sum(0)


def factor_transfer(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Factor transfer's L_FT (Kim et al., arXiv 1802.04977), as in CRD's benchmark.

    Mean absolute difference over the positions of the two factors' attention maps (p = 2). The paper takes
    the difference of the normalized factors themselves.

    Args:
        student_map: [N, Cs, Hs, Ws], the translator's factor; teacher_map: [N, Ct, Ht, Wt], the paraphraser's;
            constant. Of two sizes the larger is average pooled.

    Returns:
        [N].
    """
    student, teacher = (_attention(m, 2) for m in matched(student_map, teacher_map))
    return (student - teacher).abs().mean(1)


def _attention(feature_map: Tensor, p: float) -> Tensor:
    return unit(feature_map.abs().pow(p).mean(1).flatten(1))
