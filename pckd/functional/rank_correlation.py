"""Agreement of two orders."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation: the correlation of the ranks, equal values having the mean of theirs.

    Args:
        one, other: [B] each.

    Returns:
        -1 to 1; nan where one of the two is constant.
    """
    ranks = torch.stack([_ranks(one.cpu()), _ranks(other.cpu())])
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, group, sizes = values.unique(return_inverse=True, return_counts=True)
    last = sizes.cumsum(0).double()
    return (last - (sizes - 1) / 2)[group]
