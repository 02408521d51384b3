"""How sure a difference between two methods is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pckd.runs import mean_and_deviation
from registry import UserError


class Difference(NamedTuple):
    """Of two methods with the same seeds."""

    values: list[float]
    """Per seed."""
    mean: float
    low: float | None
    """Ends of the confidence interval of the mean; None where one seed gives none."""
    high: float | None


def paired_difference(values: Sequence[float], reference: Sequence[float], confidence: float = 0.95) -> Difference:
    """How far ``values`` are above ``reference``, seed by seed, with the interval of the paired t-test.

    What a seed does to both alike, such as an easy order of the images, cancels.
    """
    differences = [one - other for one, other in zip(values, reference, strict=True)]
    mean, deviation = mean_and_deviation(differences)
    if deviation is None:
        return Difference(differences, mean, None, None)
    half = t_quantile(confidence, len(differences) - 1) * deviation / math.sqrt(len(differences))
    return Difference(differences, mean, mean - half, mean + half)


def difference_by_seed(
    row: Mapping[str, Any], reference: Mapping[str, Any], values: Callable[[Mapping[str, Any]], Any], confidence: float
) -> Difference | None:
    """The paired difference of two rows' values over the seeds that both have; None where there are none."""
    own, theirs = (dict(zip(one["seeds"], values(one), strict=True)) for one in (row, reference))
    both = [seed for seed in own if seed in theirs]
    return (
        paired_difference([own[seed] for seed in both], [theirs[seed] for seed in both], confidence) if both else None
    )


def t_quantile(confidence: float, freedom: int) -> float:
    """The t for which Student's distribution has ``confidence`` between -t and t: 12.706 for 0.95 and 1 degree."""
    if not 0 < confidence < 1:
        raise UserError(f"confidence must be above 0 and below 1, not {confidence}")
    low, high = 0.0, math.pi / 2
    # By the angle, in which the distribution's whole range is bounded.
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _between(middle, freedom) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _between(angle: float, freedom: int) -> float:
    """Probability between -t and t, t = sqrt(freedom) tan(angle): Abramowitz & Stegun, 26.7.3 and 26.7.4."""
    cos, odd = math.cos(angle), freedom % 2
    term, total = (cos if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= k / (k + 1) * cos * cos
    series = math.sin(angle) * total
    return 2 / math.pi * (angle + series) if odd else series
