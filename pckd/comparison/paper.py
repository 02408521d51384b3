"""The figures of the papers, where a run is of their setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from model_zoo import OTHER_SOURCES, PAIRS
from pckd.comparison.jobs import DEFAULTS, unusual
from pckd.comparison.variants import Variant
from registry import METHODS, UserError, parse

_ROWS = {
    "vanilla": "student",
    "pckd_without_kd": "PCKD without L_KD",
    "pckd(delta=0)": "PCKD without L_KD",
    "kd(ce=0.1, weight=0.9)": "KD",
    "ckd": "",
    "kd_plus_plus": "KD++",
    "norm(kd=1)": "NORM+KD",
}
"""Methods that the tables call otherwise; the others have their own name, in capitals of some kind.

Which paper the row CKD means could not be established: the code of ``ckd`` has neither its figures nor its pairs."""
_SAME_FAMILY = [pair for pair in PAIRS if "PCKD" in pair.paper]

_FREE = frozenset({"flip", "precision", "scheduler", "teacher_epochs", "teacher_weights"})
"""Options that may be other than :func:`pckd.distill` has them; the scheduler is the variants' own."""


def is_papers_setting(protocol: Mapping[str, Any]) -> bool:
    """Whether data set, schedule and training set of a benchmark are those of the CIFAR-100 tables."""
    if protocol.get("teacher_cache") or set(unusual(protocol)) - _FREE:
        return False
    if not protocol.get("teacher_weights") and protocol.get("teacher_epochs") not in (None, DEFAULTS["epochs"]):
        return False
    return parse(str(protocol["dataset"]))[0] == "cifar100"


def paper_figure(protocol: Mapping[str, Any], teacher: str, student: str, variant: Variant | str) -> float | None:
    """The reported top-1 accuracy in percent; None where there is none, or the setting is another.

    Args:
        variant: as it is run, or ``"teacher"``. A method with options is the paper's where the table says so.
    """
    if not is_papers_setting(protocol) or (isinstance(variant, Variant) and variant.options):
        return None
    for pair in PAIRS:
        if (pair.teacher, pair.student) == (teacher, student):
            known = {**pair.others, **pair.paper}
            row = variant if isinstance(variant, str) else _row(variant.method, known)
            return known.get(row) if row else None
    return None


def other_figures(protocol: Mapping[str, Any], pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What other papers report, of those (teacher, student) that they report something of, as a line of text.

    Empty where the setting is another.
    """
    known = {(pair.teacher, pair.student): pair.others for pair in PAIRS} if is_papers_setting(protocol) else {}
    return {
        pair: ", ".join(f"{row} {figure:.2f}" for row, figure in known[pair].items())
        for pair in pairs
        if known.get(pair)
    }


def other_sources(protocol: Mapping[str, Any], pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Where the figures of :func:`other_figures` are from, a line for each source."""
    shown = {row for pair in PAIRS if (pair.teacher, pair.student) in set(pairs) for row in pair.others}
    sources: dict[str, list[str]] = {}
    for row, source in OTHER_SOURCES.items() if is_papers_setting(protocol) else ():
        if row in shown:
            sources.setdefault(source, []).append(row)
    return [f"{', '.join(rows)}: {source}" for source, rows in sources.items()]


def paper_methods() -> list[str]:
    """The registered methods that the table of same-family pairs has a row for."""
    rows = {row: figure for pair in _SAME_FAMILY for row, figure in pair.paper.items()}
    return [name for name in METHODS.names() if _row(name, rows)]


def paper_pairs() -> list[str]:
    """The pairs of that table, as ``teacher>student``."""
    return [pair.label for pair in _SAME_FAMILY]


def _row(method: str, rows: Mapping[str, float]) -> str | None:
    for spec, row in _ROWS.items():
        if _same(spec, method):
            return row if row in rows else None
    # Several methods together are no row of that name: norm+kd also trains the student's own classifier.
    return next((row for row in rows if row.casefold() == method.casefold() and "+" not in method), None)


def _same(one: str, other: str) -> bool:
    try:
        return parse(one) == parse(other)
    except UserError:  # several methods together, which no table has
        return False
