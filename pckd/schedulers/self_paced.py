from __future__ import annotations

from torch import Tensor

from registry import DIFFICULTY_SCHEDULERS, Context, UserError


@DIFFICULTY_SCHEDULERS.register("self_paced")
def self_paced(difficulty: Tensor, context: Context, *, start: float = 1.0, end: float = 4.0) -> Tensor:
    """Linear self-paced weights max(0, 1 - difficulty / pace), the pace growing from start to end over the run.

    Self-paced learning (Kumar et al., NeurIPS 2010) with the linear soft weighting of Jiang et al. (ACM MM 2014).
    """
    if not (start > 0 and end > 0):
        raise UserError(f"self_paced: start and end must be above 0, not {start} and {end}")
    pace = start + (end - start) * context.progress
    return (1 - difficulty / pace).clamp(0, 1)
