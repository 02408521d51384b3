from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pckd.losses.maps import matched, paired, paired_shapes
from pckd.ops import exact, unit
from registry import LOSSES, METHODS, Setup, Term, UserError


def attention(feature_map: Tensor, p: float) -> Tensor:
    # As a norm over the channels, so that no power of a whole map is kept for the backward pass.
    dtype = torch.promote_types(feature_map.dtype, torch.float32)
    with exact(feature_map):
        norms = torch.linalg.vector_norm(feature_map, p, dim=1, dtype=dtype)
    return unit((norms.pow(p) / feature_map.shape[1]).flatten(1))


def check(setup: Setup, *, p: float) -> None:
    paired_shapes("at", setup.student.maps[1:], setup.teacher.maps[1:])
    if not p >= 1:
        raise UserError(f"at: p must be at least 1, not {p}")


@LOSSES.register("at", inputs=("student_stages", "teacher_stages"), check=check)
def attention_transfer(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], p: float = 2.0) -> Tensor:
    """Attention transfer (Zagoruyko & Komodakis, arXiv 1612.03928, L_AT with F^p_sum), as in CRD's benchmark; [N].

    The attention map of a layer is mean_c |A_c|^p, as a vector over the positions of length 1. The mean, not the sum,
    of the squared differences over the positions is taken, and the layers are summed.

    Args:
        student_maps: [N, Cs, Hs, Ws] each; teacher_maps: [N, Ct, Ht, Wt] each; constant. Paired from the last
            backwards; of two sizes the larger is average pooled.
        p: the power, at least 1.
    """
    layers = []
    for pair in paired(student_maps, teacher_maps):
        student, teacher = (attention(m, p) for m in matched(*pair))
        layers.append((student - teacher).square().mean(1))
    return torch.stack(layers).sum(0)


@METHODS.register("at", paper="Zagoruyko & Komodakis, arXiv 1612.03928", year=2016)
def at(ce: float = 1.0, weight: float = 1000.0, p: float = 2.0) -> list[Term]:
    """Attention transfer (Zagoruyko and Komodakis 2017): cross entropy plus attention maps of the stages."""
    return [Term("cross_entropy", ce), Term("at", weight, options={"p": p})]
