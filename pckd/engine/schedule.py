"""Schedules as pure functions of progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pckd.engine.step import Moment


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


class Schedule(NamedTuple):
    """A run's epochs: the initial ones that a method asks for, at a constant learning rate, then the main ones.

    Args:
        initial, main: epochs of each stage. steps: of an epoch. lr, milestones, decay: see :func:`learning_rate`.
    """

    initial: int
    main: int
    steps: int
    lr: float
    milestones: Sequence[float]
    decay: float

    @property
    def epochs(self) -> int:
        """How many there are in all."""
        return self.initial + self.main

    def at(self, epoch: int, step: int) -> tuple[Moment, float]:
        """What a step is told of its place in the run, and its learning rate.

        Args:
            epoch: counted from 1, over both stages. step: counted from 0, within the epoch.
        """
        if epoch <= self.initial:
            passed = epoch - 1
            return Moment(epoch, self.initial, (passed + step / self.steps) / self.initial, "initial"), self.lr
        passed = epoch - 1 - self.initial
        progress = (passed + step / self.steps) / self.main
        rate = learning_rate(progress, self.lr, self.milestones, self.decay)
        return Moment(passed + 1, self.main, progress), rate
