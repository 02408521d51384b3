"""What runs with ``report_difficulty`` say of true difficulty: which metrics agree with it, and who gains where."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pckd.comparison.statistics import difference_by_seed
from pckd.comparison.variants import UNSCHEDULED
from pckd.runs import BY_TRUTH

TERCILES = ("easy", "middle", "hard")


def truth_of(histories: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Of a variant's runs, what their difficulty reports say; None where a run has none.

    Args:
        histories: of each run the rows of its first, middle and last epoch.

    Returns:
        ``epochs``: which these are; ``correlation``: metric to the mean rank correlation in each, None where it is not
        known; ``top1``: per seed, accuracy in percent on the easy, middle and hard third after the last epoch.
    """
    reports = [[row.get("difficulty_report") for row in rows] for rows in histories]
    if not all(report and report.get(BY_TRUTH) for run in reports for report in run):
        return None
    correlation = {}
    for metric in reports[0][-1]["metrics"]:  # type: ignore[index]
        correlation[metric] = [
            _mean([run[at]["metrics"].get(metric, {}).get("truth") for run in reports])  # type: ignore[index]
            for at in range(len(reports[0]))
        ]
    return {
        "epochs": [row["epoch"] for row in histories[0]],
        "correlation": correlation,
        "top1": [run[-1][BY_TRUTH] for run in reports],  # type: ignore[index]
    }


def without_preview(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row of the same pair that differs in nothing but that no sample is weighted; None where there is none."""

    def rest(one: Mapping[str, Any]) -> tuple[Any, ...]:
        kept = {key: value for key, value in one["options"].items() if key not in ("scheduler", "difficulty")}
        return one["pair"], one["method"], kept

    if row["options"].get("scheduler") == UNSCHEDULED:
        return None
    plain = [other for other in rows if other["options"].get("scheduler") == UNSCHEDULED and rest(other) == rest(row)]
    return plain[0] if plain else None


def gains(row: Mapping[str, Any], plain: Mapping[str, Any], confidence: float) -> list[tuple[Any, ...]]:
    """For each third of the test images: mean gain over the variant without preview and the ends of its interval.

    Both have ``truth``; seeds that only one has do not count.
    """
    found = []
    for third in range(len(TERCILES)):
        top1 = partial(_of_third, third)
        if (difference := difference_by_seed(row, plain, top1, confidence)) is not None:
            found.append((difference.mean, difference.low, difference.high))
    return found


def _of_third(third: int, row: Mapping[str, Any]) -> list[float]:
    return [thirds[third] for thirds in row["truth"]["top1"]]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None
