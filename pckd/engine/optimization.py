"""How weights are updated: SGD, with a learning rate that is a function of how far the run is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pckd.ops import PUBLISHED_EPOCHS
from registry import Progress

__all__ = ["MILESTONES", "Optimization", "learning_rate", "reset_momentum"]

MILESTONES = (150 / PUBLISHED_EPOCHS, 180 / PUBLISHED_EPOCHS, 210 / PUBLISHED_EPOCHS)
"""Shares of the schedule after which the literature lowers the learning rate."""


@dataclass(frozen=True)
class Optimization:
    """Settings of the optimizer and of its schedule.

    Args:
        epochs: of the schedule. batch_size: images a step, of all processes together.
        lr: learning rate at the start. momentum, weight_decay: of SGD.
        milestones: shares of the schedule, each in (0, 1], after which lr is multiplied by ``lr_decay``.
        schedule: a factor of (share done, epochs), in the place of milestones. clip_grad: largest norm of the gradient.
        initial: epochs that come before the schedule at a constant learning rate, where a method asks for them.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: Sequence[float] = MILESTONES
    lr_decay: float = 0.1
    schedule: Callable[[float, int], float] | None = None
    clip_grad: float | None = None
    initial: int = 0

    @property
    def all_epochs(self) -> int:
        """The initial ones and those of the schedule."""
        return self.initial + self.epochs

    def optimizer(self, parts: Iterable[nn.Module], device: torch.device) -> torch.optim.SGD:
        """SGD of all parameters: left out, the losses' projections would stay frozen at their random start."""
        optimizer = torch.optim.SGD(
            [parameter for part in parts for parameter in part.parameters()],
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        reset_momentum(optimizer)
        return optimizer

    def at(self, epoch: int, step: int, steps: int) -> tuple[Progress, float]:
        """Where in the run a step (counted from 0) of an epoch (from 1, over both stages) is, and its learning rate."""
        if epoch <= self.initial:
            share = (epoch - 1 + step / steps) / self.initial
            return Progress(epoch, self.initial, share, "initial"), self.lr
        passed = epoch - 1 - self.initial
        share = (passed + step / steps) / self.epochs
        if self.schedule is None:
            rate = learning_rate(share, self.lr, self.milestones, self.lr_decay)
        else:
            rate = self.lr * self.schedule(share, self.epochs)
        return Progress(passed + 1, self.epochs, share), rate


def learning_rate(progress: float, base: float, milestones: Sequence[float], decay: float = 0.1) -> float:
    """Step schedule: ``base`` times ``decay`` for every milestone (a share of the run, as progress is) reached."""
    return base * decay ** sum(progress >= milestone for milestone in milestones)


def reset_momentum(optimizer: torch.optim.SGD) -> None:
    """Start from zero momentum, for every parameter.

    Left to itself, fused SGD makes the buffers at the first gradient, and fails where some parameters have their first
    gradient later than others, as in methods with initial epochs. From zero the first step is the same.
    """
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
