from __future__ import annotations

from torch import Tensor

from pckd import functional
from registry import DIFFICULTY_SCHEDULERS, Context


@DIFFICULTY_SCHEDULERS.register("hard_curriculum")
def hard_curriculum(
    difficulty: Tensor, context: Context, *, growth: float = 1.005, reference_epochs: int | None = 240
) -> Tensor:
    """1 up to preview's rising bar, 0 above it: the curriculum that drops hard samples until their time comes."""
    bar = growth ** functional.published_epoch(context, reference_epochs)
    return (difficulty <= bar).to(difficulty.dtype)
