"""Does a learning-rate schedule keep the contract of ``registry.LR_SCHEDULES``?"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

from pckd.ops import PUBLISHED_EPOCHS
from pckd.testing.contract import Contract
from registry import LR_SCHEDULES

MOMENTS = 100
"""Shares of the run that are tried: 0, 1/100, ..., 1."""


def check_lr_schedule(schedule: str | Callable[[float, int], float], *, epochs: int = PUBLISHED_EPOCHS) -> None:
    """Hold a learning-rate schedule to its contract, from the start of a run to its end.

    Clauses: builds, runs, number, finite, not negative, trains, pure.

    Args:
        schedule: a registered name, with options or without (``"cosine(warmup=5)"``), or the function
            ``(progress, epochs) -> factor``.
        epochs: length of the run.
    """
    contract = Contract("schedule", LR_SCHEDULES, schedule)
    with contract.clause("builds") as expect:
        factor = contract.make()
        expect(callable(factor), f"it is {type(factor).__name__}", "a function")
    found = []
    for moment in range(MOMENTS + 1):
        progress = moment / MOMENTS
        with contract.trial(f"{progress:.0%} of {epochs} epochs"):
            with contract.clause("runs"):
                value = factor(progress, epochs)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            contract.holds("number", is_number, f"returned {type(value).__name__}", "a float")
            contract.holds("finite", math.isfinite(value), f"returned {value}", "a finite number")
            contract.holds("not negative", value >= 0, f"returned {value}", "0 or more")
            with contract.clause("pure") as expect:
                expect(factor(progress, epochs) == value, "the same arguments gave another factor", "the same")
            found.append(float(value))
    contract.holds("trains", any(found[:-1]), "the factor is 0 throughout", "more than 0 at some time")
