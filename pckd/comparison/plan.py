"""The runs of a comparison: which, where, with what, and what is refused before the first of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pckd.api import POOL, check_numbers
from pckd.comparison.cases import Case
from pckd.engine.cache import NO_MAPS
from pckd.engine.precision import resolve_device
from pckd.engine.sources import (
    Data,
    check_choices,
    load_trained,
    make_network,
    make_objective,
    method_terms,
    schedule_terms,
    shapes_of,
    split_methods,
)
from pckd.engine.teacher import FrozenTeacher
from pckd.objective import needs_teacher
from registry import BACKBONES, CENTER_RULES, DIFFICULTY_METRICS, NotApplicable, Setup, UserError, parse

__all__ = [
    "SETTINGS",
    "Run",
    "check_settings",
    "make_runs",
    "parse_pairs",
    "parse_seeds",
    "parse_weights",
    "refuse_early",
]

SETTINGS = (
    *("data_root", "limit_train", "limit_test", "val_fraction"),
    *("epochs", "batch_size", "lr", "views", "view_statistics", "flip"),
    *("teacher_epochs", "teacher_lr", "teacher_cache", "view_pool"),
    *("difficulty", "centers", "report_difficulty", "report_gradients"),
    *("device", "precision", "compile", "num_workers"),
)
"""Arguments of ``pckd.distill`` that all runs of a comparison have in common, beside the data set."""

_LONGEST_NAME = 80


@dataclass(frozen=True)
class Run:
    """One training of a student.

    Args:
        teacher, student: names of ``BACKBONES``. folder: of its files, relative to the comparison's.
        arguments: of ``pckd.distill``: texts, numbers, True and None.
    """

    teacher: str
    student: str
    case: Case
    seed: int
    folder: str
    arguments: Mapping[str, Any] = field(compare=False)

    @property
    def pair(self) -> str:
        return f"{self.teacher}>{self.student}"

    @property
    def title(self) -> str:
        return f"{self.pair} {self.case.label} seed {self.seed}"

    @property
    def path(self) -> Path:
        """Its folder."""
        return Path(self.arguments["output"])

    def __hash__(self) -> int:
        return hash(self.folder)


def parse_pairs(text: str) -> list[tuple[str, str]]:
    """``"resnet20>resnet8,resnet20>vgg8"`` as (teacher, student) each.

    Raises:
        UserError: another form, or an unknown network.
    """
    pairs = []
    for part in split_methods(text, ","):
        teacher, arrow, student = (piece.strip() for piece in part.partition(">"))
        if not (teacher and arrow and student):
            raise UserError(f"--pairs: cannot read {part!r}: give TEACHER>STUDENT, several with commas between")
        for name in (teacher, student):
            BACKBONES.get(parse(name)[0])
        pairs.append((teacher, student))
    return list(dict.fromkeys(pairs))


def parse_seeds(text: str) -> list[int]:
    """``"0,1,2"``.

    Raises:
        UserError: something else is in it.
    """
    try:
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise UserError(f"--seeds must be whole numbers with commas between, not {text!r}") from None


def parse_weights(text: str | None, teachers: Sequence[str]) -> dict[str, str]:
    """Teacher to file or address: of ``FILE``, where there is one teacher, or ``resnet20=FILE,vgg13=FILE``.

    Raises:
        UserError: it cannot be told which file is whose.
    """
    if text is None:
        return {}
    teachers = list(dict.fromkeys(teachers))
    parts = split_methods(text, ",")
    split = [part.partition("=") for part in parts if "=" in part]
    named = {name.strip(): file.strip() for name, _, file in split}
    if len(named) == len(parts) and set(named) <= set(teachers):
        return named
    if len(teachers) == 1 and len(named) < 2:
        return {teachers[0]: text}
    raise UserError(
        f"--teacher-weights {text!r}: there are several teachers ({', '.join(teachers)}); give NAME=FILE for each, "
        "with commas between"
    )


def make_runs(
    pairs: Sequence[tuple[str, str]],
    cases: Sequence[Case],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    weights: Mapping[str, str],
    root: Path,
) -> list[Run]:
    """Every case with every seed on every pair; pair by pair, all cases with the first seed before the second.

    Args:
        settings: arguments of ``pckd.distill`` that all have in common; a case's options win.

    Raises:
        UserError: two would have the same folder.
    """
    runs = []
    for teacher, student in pairs:
        for seed in seeds:
            for case in cases:
                folder = f"{folder_name(f'{teacher}_{student}')}/{folder_name(case.label)}-seed{seed}"
                arguments = {
                    **settings,
                    "student": student,
                    "teacher": teacher,
                    "teacher_weights": weights.get(teacher),
                    # Of its own, because a case may be longer and has the same teacher.
                    "teacher_epochs": None if teacher in weights else settings["teacher_epochs"] or settings["epochs"],
                    "method": case.method,
                    **case.options,
                    "seed": seed,
                    "output": str(root / folder),
                    "resume": True,
                }
                runs.append(Run(teacher, student, case, seed, folder, arguments))
    taken: dict[str, Run] = {}
    for run in runs:
        other = taken.setdefault(run.folder, run)
        if other is not run:
            raise UserError(f"{other.title} and {run.title} would have the same folder, {run.folder}; rename one")
    return runs


def folder_name(text: str) -> str:
    """The text, where every file system takes it; else what is left of it, and a hash that tells it from others."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_+.") else "_" for c in text)[:_LONGEST_NAME]
    return safe if safe == text else f"{safe.strip('_')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def check_settings(settings: Mapping[str, Any], seeds: Sequence[int]) -> None:
    """Refuse numbers, paths, names and devices that no run can use.

    Raises:
        UserError: names the option.
    """
    numbers = ("epochs", "teacher_epochs", "batch_size", "limit_train", "limit_test", "lr", "teacher_lr", "views")
    check_numbers(**{name: settings[name] for name in (*numbers, "view_pool", "num_workers")})
    for seed in seeds:
        check_numbers(seed=seed)
    for name in ("data_root", "teacher_cache"):
        if settings[name] == "":
            raise UserError(f"{name} must be a path, not ''; give one, or leave {name} out")
    if settings["view_pool"] == 0 and settings["teacher_cache"] is not None:
        raise UserError("a teacher cache needs a finite view_pool: view_pool=0 draws augmentations without end")
    DIFFICULTY_METRICS.get(parse(settings["difficulty"])[0])
    CENTER_RULES.get(parse(settings["centers"])[0])
    resolve_device(settings["device"])


def refuse_early(runs: Sequence[Run], data: Data) -> tuple[dict[tuple[str, str], str], list[str]]:
    """What would be refused at a run's start, found before any of them, and before a teacher is trained.

    Args:
        runs: of each pair and case the first is looked at.

    Returns:
        (pair, label) to the reason, of those that are not applicable; and lines about what is left out of others.

    Raises:
        UserError: bad input of another kind.
    """
    refused: dict[tuple[str, str], str] = {}
    notes: list[str] = []
    teachers: dict[str, FrozenTeacher] = {}
    students: dict[str, Any] = {}
    for run in _first_of_each(runs):
        weights = run.arguments["teacher_weights"]
        if run.teacher not in teachers:
            network = make_network(run.teacher, data) if weights is None else load_trained(run.teacher, data, weights)
            teachers[run.teacher] = FrozenTeacher(network)
        if run.student not in students:
            students[run.student] = shapes_of(make_network(run.student, data), data, "student")
        teacher = teachers[run.teacher]
        setup = Setup(students[run.student], shapes_of(teacher, data, "teacher"), len(data.train), teacher.classifier)
        try:
            missing = _left_out(run, setup, data)
        except NotApplicable as error:
            refused[run.pair, run.case.label] = str(error)
        else:
            if missing:
                notes.append(f"{run.pair} {run.case.label}: without {', '.join(missing)}, which cannot work here")
    return refused, notes


def _first_of_each(runs: Sequence[Run]) -> list[Run]:
    first: dict[tuple[str, str], Run] = {}
    for run in runs:
        first.setdefault((run.pair, run.case.label), run)
    return list(first.values())


def _left_out(run: Run, setup: Setup, data: Data) -> list[str]:
    """The optional terms that cannot work for this pair.

    Raises:
        NotApplicable: the run cannot.
    """
    options = run.arguments
    pool = options["view_pool"]
    if pool is None:
        pool = 0 if options["teacher_cache"] is None else POOL
    choices = {name: options[name] for name in ("difficulty", "centers")}
    asked = method_terms(options["method"], run.student, run.teacher)
    terms, scheduler = schedule_terms(asked, options.get("scheduler"))
    check_choices(data, terms, views=options["views"], view_pool=pool, scheduler=scheduler, **choices)
    if options["teacher_cache"] is not None and needs_teacher(terms):
        setup = setup._replace(teacher=setup.teacher._replace(maps=NO_MAPS, preacts=NO_MAPS))
    with _unlogged():
        objective = make_objective(terms, setup, scheduler=scheduler, **choices)
    if needs_teacher(terms) and not objective.needs_teacher:
        raise NotApplicable("no term that looks at the teacher can work for this pair of networks")
    views = options["views"] or (4 if objective.needs_rotations else 1)
    objective.check_views(views, min(options["batch_size"], len(data.train)))
    kept = list(objective.terms.values())
    return [term.label for term in terms if term.weight and term not in kept]


@contextmanager
def _unlogged() -> Iterator[None]:
    """The run itself logs what it leaves out."""
    log = logging.getLogger("pckd")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
