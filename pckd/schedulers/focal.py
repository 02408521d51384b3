from __future__ import annotations

import torch
from torch import Tensor

from registry import DIFFICULTY_SCHEDULERS, Context


@DIFFICULTY_SCHEDULERS.register("focal")
def focal(difficulty: Tensor, context: Context, *, gamma: float = 2.0) -> Tensor:
    """(1 - exp(-difficulty))^gamma: hard samples first, the opposite of a preview.

    The focal factor (1 - p)^gamma (Lin et al., arXiv 1708.02002, eq. 4) with p = exp(-difficulty), which for the
    difficulty ``cross_entropy`` is the label's probability with the batch's mean loss as the unit.
    """
    return (1 - torch.exp(-difficulty)).pow(gamma)
