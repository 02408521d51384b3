"""Schedules as pure functions of progress."""

from __future__ import annotations

from collections.abc import Sequence


def learning_rate(
    progress: float,
    base: float,
    milestones: Sequence[float] = (150 / 240, 180 / 240, 210 / 240),
    decay: float = 0.1,
) -> float:
    """Step schedule: ``base`` times ``decay`` for every milestone reached.

    Args:
        progress: share of the run done, 0 to 1.
        base: the learning rate at the start.
        milestones: shares of the run, each in (0, 1]; the paper's are 150, 180 and 210 of 240 epochs.
        decay: factor at each milestone.
    """
    return base * decay ** sum(progress >= milestone for milestone in milestones)
