"""Methods side by side: on one pair of networks, or on all pairs of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from model_zoo import PAIRS
from pckd.profiling.api import Case, profile_cases
from pckd.profiling.report import BASES, Comparison
from pckd.terms import Teachers
from registry import UserError


def compare(
    methods: Sequence[str],
    *,
    student: str | nn.Module,
    teacher: Teachers = None,
    bases: Sequence[str] = BASES,
    **options: Any,
) -> Comparison:
    """Methods side by side on one pair, their steps timed in turns.

    Args:
        methods: names with options; ``"pckd@1"`` is the method with one view of each image.
        student, teacher: as for :func:`profile`.
        bases: methods that are profiled also where they are not named, to compare with.
        options: any other argument of :func:`profile` but ``method``.
    """
    if isinstance(teacher, (list, tuple)) and len(teacher) > 1:
        raise UserError(
            "methods side by side have one teacher, because the @ says the number of views: name one teacher"
        )
    views = options.pop("views", None)
    cases = {}
    for label in dict.fromkeys((*bases, *methods)):
        name, at, number = label.rpartition("@")
        if at and not number.isdecimal():
            raise UserError(f"{label!r}: after the @ stands the number of views, as in pckd@1")
        cases[label] = Case(name, int(number)) if at else Case(label, views)
    return Comparison(profiles=profile_cases(cases, student=student, teacher=teacher, **options))


def compare_pairs(methods: Sequence[str], *, bases: Sequence[str] = ("kd",), **options: Any) -> dict[str, Comparison]:
    """:func:`compare` for every pair that the PCKD paper's table reports, by ``teacher>student``."""
    return {
        pair.label: compare(methods, student=pair.student, teacher=pair.teacher, bases=bases, **options)
        for pair in PAIRS
        if "PCKD" in pair.paper
    }
