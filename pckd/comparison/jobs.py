"""The runs of a comparison: which, where, with what, and what is refused before the first of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pckd.api import distill
from pckd.arguments import alike, check_arguments
from pckd.comparison.variants import Variant
from pckd.data.load import Data
from pckd.device import Device
from pckd.engine.teacher import FrozenTeacher, SeveralTeachers
from pckd.plan import Plan, class_list, load_trained, make_task, plan
from pckd.runs import grouped
from registry import (
    BACKBONES,
    CENTER_RULES,
    DIFFICULTY_METRICS,
    NotApplicable,
    UserError,
    options_of,
    parse,
    split_specs,
)

DEFAULTS = options_of(distill)
"""What :func:`pckd.distill` takes, and what it does where nothing is given."""
OWN = frozenset(
    {"student", "student_weights", "teacher", "teacher_weights", "method", "scheduler", "seed", "output", "resume"}
)
"""What a job gives :func:`pckd.distill` by itself."""

_LONGEST_NAME = 80


@dataclass(frozen=True)
class Job:
    """One training of a student: ``arguments`` of ``pckd.distill``, and a ``folder`` below the comparison's."""

    teacher: str
    student: str
    variant: Variant
    seed: int
    folder: str
    arguments: Mapping[str, Any] = field(compare=False)

    @property
    def pair(self) -> str:
        return f"{self.teacher}>{self.student}"

    @property
    def row(self) -> tuple[str, str]:
        """Of the tables: the pair and the label."""
        return self.pair, self.variant.label

    @property
    def title(self) -> str:
        return f"{self.pair} {self.variant.label} seed {self.seed}"

    @property
    def path(self) -> Path:
        """Its folder."""
        return Path(self.arguments["output"])

    def __hash__(self) -> int:
        return hash(self.folder)


def parse_pairs(text: str) -> list[tuple[str, str]]:
    """``"resnet20>resnet8,resnet20>vgg8"`` as (teacher, student) each."""
    pairs = []
    for part in split_specs(text, ","):
        teacher, arrow, student = (piece.strip() for piece in part.partition(">"))
        if not (teacher and arrow and student):
            raise UserError(f"--pairs: cannot read {part!r}: give TEACHER>STUDENT, several with commas between")
        for name in (teacher, student):
            BACKBONES.get(parse(name)[0])
        pairs.append((teacher, student))
    return list(dict.fromkeys(pairs))


def parse_seeds(text: str) -> list[int]:
    """``"0,1,2"``."""
    try:
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise UserError(f"--seeds must be whole numbers with commas between, not {text!r}") from None


def parse_weights(text: str | None, networks: Sequence[str], role: str = "teacher") -> dict[str, str]:
    """Network to file or address: of ``FILE``, where there is one of them, or ``resnet20=FILE,vgg13=FILE``."""
    if text is None:
        return {}
    names = list(dict.fromkeys(networks))
    parts = split_specs(text, ",")
    split = [part.partition("=") for part in parts if "=" in part]
    named = {name.strip(): file.strip() for name, _, file in split}
    if len(named) == len(parts) and set(named) <= set(names):
        return named
    if len(names) == 1 and len(named) < 2:
        return {names[0]: text}
    raise UserError(
        f"--{role}-weights {text!r}: there are several {role}s ({', '.join(names)}); give NAME=FILE for each, "
        "with commas between"
    )


def make_jobs(
    pairs: Sequence[tuple[str, str]],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    weights: Mapping[str, str],
    root: Path,
    starts: Mapping[str, str] = MappingProxyType({}),
) -> list[Job]:
    """Every variant with every seed on every pair; pair by pair, all variants with the first seed before the second.

    Args:
        settings: arguments of ``pckd.distill`` that all have in common; a variant's options win.
        weights: file by teacher. starts: file by student, of the weights that it starts with.
    """
    jobs = []
    for teacher, student in pairs:
        for seed in seeds:
            for variant in variants:
                folder = f"{folder_name(f'{teacher}_{student}')}/{folder_name(variant.label)}-seed{seed}"
                arguments = {
                    **settings,
                    "student": student,
                    "student_weights": starts.get(student),
                    "teacher": teacher,
                    "teacher_weights": weights.get(teacher),
                    # Of its own, because a variant may be longer and has the same teacher.
                    "teacher_epochs": None if teacher in weights else settings["teacher_epochs"] or settings["epochs"],
                    "method": variant.method,
                    **variant.options,
                    "seed": seed,
                    "output": str(root / folder),
                    "resume": True,
                }
                jobs.append(Job(teacher, student, variant, seed, folder, arguments))
    taken: dict[str, Job] = {}
    for job in jobs:
        other = taken.setdefault(job.folder, job)
        if other is not job:
            raise UserError(f"{other.title} and {job.title} would have the same folder, {job.folder}; rename one")
    return jobs


def settings_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a command line's options those that :func:`pckd.distill` takes alike in all runs."""
    return {name: options[name] for name in DEFAULTS if name in options and name not in OWN}


def unusual(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a command line's options those that tell runs apart and are not as :func:`pckd.distill` has them.

    Networks and methods, which the tables name, are not among them.
    """
    names = [
        name for name in DEFAULTS if name in options and name not in OWN - {"scheduler", "student_weights"} | alike()
    ]
    return {name: options[name] for name in names if (options[name] or None) != (DEFAULTS[name] or None)}


def folder_name(text: str) -> str:
    """The text, where every file system takes it; else what is left of it, and a hash that tells it from others."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_+.") else "_" for c in text)[:_LONGEST_NAME]
    return safe if safe == text else f"{safe.strip('_')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def check_settings(settings: Mapping[str, Any], seeds: Sequence[int]) -> None:
    """Refuse numbers, paths, names and devices that no run can use."""
    check_arguments(**settings)
    for seed in seeds:
        check_arguments(seed=seed)
    if settings["view_pool"] == 0 and settings["teacher_cache"] is not None:
        raise UserError("a teacher cache needs a finite view_pool: view_pool=0 draws augmentations without end")
    DIFFICULTY_METRICS.get(parse(settings["difficulty"])[0])
    CENTER_RULES.get(parse(settings["centers"])[0])
    Device.resolve(settings["device"])


def refuse_early(jobs: Sequence[Job], data: Data) -> tuple[dict[tuple[str, str], str], list[str]]:
    """What would be refused at the start of the first run of each row, found before a teacher is trained.

    Returns:
        (pair, label) to the reason, of those that are not applicable; and lines about what is left out of others.

    Raises:
        UserError: bad input of another kind.
    """
    refused: dict[tuple[str, str], str] = {}
    notes: list[str] = []
    teachers: dict[str, FrozenTeacher | SeveralTeachers | None] = {}
    judged = ""
    for job in (of_row[0] for of_row in grouped(jobs, lambda job: job.row).values()):
        weights = job.arguments["teacher_weights"]
        try:
            run = _plan(job, data)
            if job.teacher not in teachers:
                classes = class_list(job.arguments.get("teacher_classes"))
                network = None if weights is None else load_trained(run.task, job.teacher, data, weights, classes)
                teachers[job.teacher] = (
                    run.untrained_teacher() if network is None else run.freeze([network], lambda _: None)
                )
            missing = _left_out(run, teachers[job.teacher])
        except NotApplicable as error:
            refused[job.row] = str(error)
        else:
            judged = judged or run.task.metric
            if run.task.metric != judged:
                refused[job.row] = f"is judged by {run.task.metric}, and others by {judged}; run it by itself"
            elif missing:
                notes.append(f"{job.pair} {job.variant.label}: without {', '.join(missing)}, which cannot work here")
    return refused, notes


def _plan(job: Job, data: Data) -> Plan:
    options, cached = job.arguments, job.arguments["teacher_cache"] is not None
    of_task = {name: options[name] for name in ("views", "view_statistics", "flip", "augment", "view_pool")}
    of_task["balance"] = options.get("balance", "none")
    names = ("difficulty", "scheduler", "centers", "batch_size", "epochs", "lr", "optimizer", "label_smoothing")
    run = plan(
        task=make_task(options["task"], data, cached=cached, **of_task),
        data=data,
        student=job.student,
        teacher=job.teacher,
        method=options["method"],
        cached=cached,
        teacher_weights=options["teacher_weights"],
        **{name: options[name] for name in names if name in options},
    )
    if options["student_weights"] is not None:
        run.start_from(options["student_weights"], lambda _: None)
    return run


def _left_out(run: Plan, teacher: FrozenTeacher | SeveralTeachers | None) -> list[str]:
    """The optional terms that cannot work for this pair.

    Raises:
        NotApplicable: the run cannot.
    """
    with unlogged():
        objective = run.objective(teacher)
    if run.needs_teacher and not objective.needs_teacher:
        raise NotApplicable("no term that looks at the teacher can work for this pair of networks")
    kept = list(objective.terms.values())
    return [term.label for term in run.terms if term.weight and term not in kept]


@contextmanager
def unlogged() -> Iterator[None]:
    """Do not log which terms are left out: a run says it itself."""
    log = logging.getLogger("pckd")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
