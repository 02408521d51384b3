"""Contrast with a memory bank by noise-contrastive estimation (Tian et al., arXiv 1910.10699, CRD).

Shapes: N rows (anchors), M slots of the bank, D width of the contrast space. The negatives of a row are m slots drawn
with replacement; they are kept as ``counts`` [N, M], how often each slot was drawn. Sums over draws are then sums over
slots: no [N, m, D] copy of the bank, and a backward pass without colliding writes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.functional.numerics import exact, full, unit


def draw_negatives(own: Tensor, slots: int, draws: int) -> Tensor:
    """Draw slots uniformly, on the device of ``own``, never the own one: own + 1 to own + M - 1, modulo M.

    Args:
        own: [N], int64, each row's own slot. slots: M, at least 2. draws: m, with replacement.

    Returns:
        counts [N, M]: each row sums to ``draws`` and is 0 at ``own``.
    """
    shift = torch.randint(1, slots, (len(own), draws), device=own.device)
    counts = torch.zeros(len(own), slots, device=own.device)
    return counts.scatter_add_(1, (own[:, None] + shift) % slots, torch.ones_like(shift, dtype=counts.dtype))


def keep_other_classes(counts: Tensor, labels: Tensor, slot_labels: Tensor) -> Tensor:
    """Leave out the draws that show the row's own class, and scale the others up to as many draws as there were.

    So the row's sum over draws has the expectation that draws from other classes alone would give it.

    Args:
        counts: [N, M]. labels: [N]. slot_labels: [M], negative where not known yet: that counts as another class.

    Returns:
        counts [N, M]; all 0 for a row that drew its own class only.
    """
    kept = counts * (labels[:, None] != slot_labels[None, :])
    return kept * (counts.sum(dim=1) / kept.sum(dim=1).clamp_min(1))[:, None]


def bank_scores(query: Tensor, key: Tensor, bank: Tensor, temperature: float = 0.07) -> tuple[Tensor, Tensor]:
    """Scores query . key / temperature, of each query with its own key and with every slot of the bank.

    Args:
        query: [..., N, D], of length 1. key: [..., N, D]; constant. bank: [..., M, D]; constant.

    Returns:
        [..., N] and [..., N, M].
    """
    with exact(query):
        query, key, bank = full(query), full(key.detach()), full(bank.detach())
        return (query * key).sum(dim=-1) / temperature, query @ bank.mT / temperature


@torch.no_grad()
def log_normalizer(positive: Tensor, negatives: Tensor, counts: Tensor) -> Tensor:
    """log Z, with Z = M * mean of exp(score) over positives and drawn negatives: estimated once, at the first batch.

    Args:
        positive: [..., N]. negatives: [..., N, M]. counts: [N, M].

    Returns:
        [...].
    """
    positive, negatives = full(positive), full(negatives)
    largest = torch.maximum(positive.amax(dim=-1), negatives.amax(dim=(-2, -1)))
    drawn = (counts * (negatives - largest[..., None, None]).exp()).sum(dim=(-2, -1))
    mean = ((positive - largest[..., None]).exp().sum(dim=-1) + drawn) / (len(counts) + counts.sum())
    return largest + mean.clamp_min(torch.finfo(mean.dtype).tiny).log() + math.log(counts.shape[1])


def noise_contrast(positive: Tensor, negatives: Tensor, counts: Tensor, draws: int, log_z: Tensor) -> Tensor:
    """Is a pair a joint one or noise: -log h(positive) - sum over the draws of log(1 - h(negative)).

    h = P / (P + m / M) with P = exp(score) / Z: CRD's critic and its loss (equation 18), with m negatives. Computed
    from log P, it needs no small constant and is finite for any score.

    Args:
        positive: [..., N], scores. negatives: [..., N, M], scores of every slot. counts: [N, M].
        draws: m, how many negatives each row has. log_z: [...].

    Returns:
        [..., N].
    """
    noise = (log_z + math.log(draws / counts.shape[1]))[..., None]
    others = counts * F.softplus(full(negatives) - noise[..., None])
    return F.softplus(noise - full(positive)) + others.sum(dim=-1)


@torch.no_grad()
def renewed(old: Tensor, vectors: Tensor, keep: Tensor) -> Tensor:
    """Vectors to write: keep * old + (1 - keep) * new, scaled to length 1.

    Args:
        old: [..., N, D]. vectors: [..., N, D]. keep: [N], CRD's momentum, or 0 to forget the old.

    Returns:
        [..., N, D].
    """
    keep = keep[:, None].to(old.dtype)
    return unit(keep * old + (1 - keep) * full(vectors))


def first_rows(slots: Tensor) -> Tensor:
    """For each row the first row of the same slot, so that rows that share one write the same into it: [N] to [N]."""
    rows = torch.arange(len(slots), device=slots.device)
    return torch.where(slots[:, None] == slots[None, :], rows, len(rows)).amin(dim=1)
