"""Learning-rate schedules: by which factor the learning rate at the start is multiplied, step by step.

Each may begin with a warm-up of ``warmup`` epochs, in which the factor rises linearly to 1; the schedule proper is
about the epochs that are left.
"""

from __future__ import annotations

import math

from registry import LR_SCHEDULES, UserError


def after_warmup(name: str, progress: float, epochs: int, warmup: float) -> tuple[float, float]:
    """How far the warm-up is, and the share of the epochs after it that is done.

    Raises:
        UserError: the warm-up is as long as the run, or below 0.
    """
    if not 0 <= warmup < epochs:
        raise UserError(f"{name}: warmup={warmup:g}: it must be at least 0 epochs, and shorter than the run ({epochs})")
    share = warmup / epochs
    # The first step is a small one, and not none.
    return (max(progress / share, 1e-3) if progress < share else 1.0), max(0.0, (progress - share) / (1 - share))


@LR_SCHEDULES.register("cosine")
def cosine(progress: float, epochs: int, *, warmup: float = 0.0, least: float = 0.0) -> float:
    """Half a cosine from 1 down to ``least`` (Loshchilov and Hutter, arXiv 1608.03983, without restarts)."""
    rise, done = after_warmup("cosine", progress, epochs, warmup)
    return rise * (least + (1 - least) * 0.5 * (1 + math.cos(math.pi * done)))


@LR_SCHEDULES.register("linear")
def linear(progress: float, epochs: int, *, warmup: float = 0.0, least: float = 0.0) -> float:
    """A straight line from 1 down to ``least``."""
    rise, done = after_warmup("linear", progress, epochs, warmup)
    return rise * (1 - (1 - least) * done)


@LR_SCHEDULES.register("constant")
def constant(progress: float, epochs: int, *, warmup: float = 0.0) -> float:
    """1 throughout."""
    return after_warmup("constant", progress, epochs, warmup)[0]
