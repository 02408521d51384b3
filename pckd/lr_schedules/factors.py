"""Learning-rate schedules: by which factor the learning rate at the start is multiplied, step by step.

Each may begin with a warm-up of ``warmup`` epochs, in which the factor rises linearly to 1; the schedule proper is
about the epochs that are left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pckd.engine.optimization import MILESTONES, learning_rate
from registry import LR_SCHEDULES, UserError


def after_warmup(name: str, progress: float, epochs: int, warmup: float, by_epoch: bool) -> tuple[float, float]:
    """How far the warm-up is, and the share of the epochs after it that is done.

    Raises:
        UserError: the warm-up is as long as the run, or below 0.
    """
    if not 0 <= warmup < epochs:
        raise UserError(f"{name}: warmup={warmup:g}: it must be at least 0 epochs, and shorter than the run ({epochs})")
    share = warmup / epochs
    # The first step is a small one, and not none.
    rise = max(progress / share, 1e-3) if progress < share else 1.0
    # Rounded, because a share that is a whole number of epochs may come a little below it.
    done = math.floor(round(progress * epochs, 6)) / epochs if by_epoch else progress
    return rise, max(0.0, (done - share) / (1 - share))


@LR_SCHEDULES.register("cosine")
def cosine(progress: float, epochs: int, *, warmup: float = 0.0, least: float = 0.0, by_epoch: bool = False) -> float:
    """Half a cosine from 1 down to ``least`` (Loshchilov and Hutter, arXiv 1608.03983, without restarts)."""
    rise, done = after_warmup("cosine", progress, epochs, warmup, by_epoch)
    return rise * (least + (1 - least) * 0.5 * (1 + math.cos(math.pi * done)))


@LR_SCHEDULES.register("linear")
def linear(progress: float, epochs: int, *, warmup: float = 0.0, least: float = 0.0, by_epoch: bool = False) -> float:
    """A straight line from 1 down to ``least``."""
    rise, done = after_warmup("linear", progress, epochs, warmup, by_epoch)
    return rise * (1 - (1 - least) * done)


@LR_SCHEDULES.register("constant")
def constant(progress: float, epochs: int, *, warmup: float = 0.0) -> float:
    """1 throughout."""
    return after_warmup("constant", progress, epochs, warmup, False)[0]


@LR_SCHEDULES.register("step")
def step(progress: float, epochs: int, *, every: float = 30.0, decay: float = 0.1, warmup: float = 0.0) -> float:
    """Multiplied by ``decay`` after each ``every`` epochs."""
    if not every > 0:
        raise UserError(f"step: every={every:g}: it must be above 0 epochs")
    rise, _ = after_warmup("step", progress, epochs, warmup, False)
    # No step at the very end, where nothing is trained any more.
    return rise * float(decay ** math.floor(round(min(progress, 1 - 1e-6) * epochs / every, 6)))


@LR_SCHEDULES.register("multistep")
def multistep(
    progress: float, epochs: int, *, milestones: Sequence[float] = MILESTONES, decay: float = 0.1, warmup: float = 0.0
) -> float:
    """Multiplied by ``decay`` at each of the ``milestones``, which are shares of the run, 0 to 1."""
    rise, _ = after_warmup("multistep", progress, epochs, warmup, False)
    if not all(0 < milestone <= 1 for milestone in milestones):
        raise UserError(f"multistep: milestones={milestones}: each must be a share of the run, above 0 and at most 1")
    return rise * learning_rate(progress, 1.0, milestones, decay)


@LR_SCHEDULES.register("one_cycle")
def one_cycle(progress: float, epochs: int, *, rise: float = 0.3, start: float = 0.04, least: float = 4e-6) -> float:
    """Half a cosine from ``start`` up to 1 in the share ``rise`` of the run, then one down to ``least``.

    The one-cycle policy of Smith and Topin, arXiv 1708.07120, as PyTorch's OneCycleLR shapes it; momentum is constant.
    """
    if not 0 < rise < 1:
        raise UserError(f"one_cycle: rise={rise:g}: it must be a share of the run, above 0 and below 1")
    if progress < rise:
        return start + (1 - start) * 0.5 * (1 - math.cos(math.pi * progress / rise))
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * (progress - rise) / (1 - rise)))
