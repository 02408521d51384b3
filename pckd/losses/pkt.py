from __future__ import annotations

import torch
from torch import Tensor

from pckd.ops import exact, unit
from registry import LOSSES, METHODS, Term


@LOSSES.register("pkt", compares_rows=True)
def pkt(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Probabilistic knowledge transfer: match who is near whom; [B] (Passalis and Tefas, arXiv 1803.10837).

    p(j | i) = K(x_i, x_j) / sum_k K(x_i, x_k) with the kernel K = (cos + 1) / 2, image i itself included as in the
    authors' code. Value i is sum_j p_t(j | i) log(p_t(j | i) / p_s(j | i)) / B, so that the mean over the batch is the
    mean over all pairs.

    Args:
        student_embedding: [B, Ds]. teacher_embedding: [B, Dt]; constant.
    """
    with exact(student_embedding):
        student, teacher = (_neighbors(x) for x in (student_embedding, teacher_embedding.detach()))
        return (teacher * torch.log((teacher + 1e-7) / (student + 1e-7))).mean(dim=1)


def _neighbors(x: Tensor) -> Tensor:
    x = unit(x)
    # Rounding may put a cosine slightly below -1.
    kernel = ((x @ x.T + 1) / 2).clamp_min(0)
    return kernel / kernel.sum(dim=1, keepdim=True)


@METHODS.register("pkt", paper="Passalis and Tefas, arXiv 1803.10837", year=2018)
def pkt_method(ce: float = 1.0, weight: float = 30000.0) -> list[Term]:
    """Probabilistic knowledge transfer (Passalis and Tefas 2018): cross entropy plus neighborhoods of embeddings.

    The released code adds 1e-7 to the norms, which the formula does not have: values and gradients differ by 7e-8.
    """
    return [Term("cross_entropy", ce), Term("pkt", weight)]
