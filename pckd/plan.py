"""From names to objects, once: what a run would be, and the refusal of what cannot be, before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from model_zoo import Recipe, load_weights, recipe_for, usual_teacher
from model_zoo.adapting import Adapted
from model_zoo.pairs import bare
from pckd.data.load import Data
from pckd.engine.cache import NO_MAPS
from pckd.engine.teacher import FrozenTeacher
from pckd.given import check_apart, check_gradients, check_trainable, copy_of
from pckd.objective import Metric, Objective, Scheduler, needs_teacher
from pckd.ops import PUBLISHED_EPOCHS
from pckd.tasks import Task
from pckd.terms import describe, method_lr, method_terms, pair_options, schedule_terms
from registry import (
    BACKBONES,
    CENTER_RULES,
    DATASETS,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    TASKS,
    CenterRule,
    Setup,
    Shapes,
    Term,
    UserError,
    ask,
    build,
    check_options,
    options_of,
    parse,
)

__all__ = ["Choice", "Plan", "choose", "load_trained", "make_objective", "make_task", "plan"]

TOLERATED = 4.0
"""Factor by which a learning rate may differ from the linear rule before the log says so."""


@dataclass(eq=False)
class Plan:
    """What a run would be. Made by :func:`plan`.

    Attributes:
        student: the network, untrained or as it was given. student_name: as the caller named it.
        teacher: a name, a network, or None where there is none.
        terms: of the method, with the pair's published options. published: these options, by method.
        batch_size: images of the smallest batch. cached: the teacher's logits and embedding are kept, its maps not.
        notes: what to tell the user.
    """

    task: Task
    data: Data
    student: nn.Module
    student_name: str | nn.Module
    teacher: str | nn.Module | None
    method: str | Sequence[Term]
    terms: list[Term]
    published: dict[str, dict[str, Any]]
    difficulty: str | Metric
    scheduler: str | Scheduler
    centers: str | CenterRule
    batch_size: int
    epochs: int
    lr: float
    seed: int
    cached: bool = False
    notes: list[str] = field(default_factory=list)
    _probed: dict[str, Shapes] = field(default_factory=dict, init=False)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term looks at a teacher."""
        return needs_teacher(self.terms)

    def untrained_teacher(self) -> FrozenTeacher | None:
        """The named teacher before its training; the one that was given; None where there is none."""
        if self.teacher is None:
            return None
        return FrozenTeacher(self.task.make_network(self.teacher, self.data))

    def objective(
        self, teacher: FrozenTeacher | None, terms: Sequence[Term] | None = None, *, num_samples: int | None = None
    ) -> Objective:
        """The objective under this teacher.

        Args:
            terms: instead of the plan's own. num_samples: pretended size of the training set.

        Raises:
            UserError: a term cannot work for this pair of networks, these options or this data.
        """
        task, data, terms = self.task, self.data, self.terms if terms is None else terms
        student = self._shapes(self.student, "student")
        shapes = student if teacher is None else self._shapes(teacher.network, "teacher")
        if not needs_teacher(terms):
            # In an objective that does not look at it the student stands in its place.
            shapes = student
        elif teacher is not None and self.cached:
            shapes = shapes._replace(maps=NO_MAPS, preacts=NO_MAPS)
        if teacher is not None and needs_teacher(terms):
            task.check_pair(self.student, teacher.network, data)
        setup = task.setup(student, shapes, data, None if teacher is None else teacher.classifier)
        setup = setup._replace(num_samples=num_samples or setup.num_samples)
        # Seeded anew, so that the projections do not depend on whether the teacher was trained just now.
        torch.manual_seed(self.seed + 1)
        objective = make_objective(
            terms, setup, difficulty=self.difficulty, scheduler=self.scheduler, centers=self.centers
        )
        check_gradients(self.student, objective)
        objective.check_rows(task.sizes(self.batch_size, objective))
        task.check_batch(self.student, data, self.batch_size, objective)
        return objective

    def _shapes(self, network: nn.Module, role: str) -> Shapes:
        """Probed once: a trained teacher has the shapes of the untrained one."""
        if role not in self._probed:
            self._probed[role] = self.task.shapes(network, self.data, role)
        return self._probed[role]

    def freeze(self, network: nn.Module, say: Callable[[str], None]) -> FrozenTeacher:
        """A teacher that is ready to answer about this plan's data.

        Args:
            say: told where its images were normalized in another way than the data's.

        Raises:
            UserError: it was trained on other classes.
        """
        return FrozenTeacher(network, self.task.renormalization(network, self.data, say))

    def start(self, objective: Objective, teacher: FrozenTeacher | None, say: Callable[[str], None]) -> None:
        """Let the losses set weights of the student, before a new run's first step; say what is special about it."""
        inherits = any(hasattr(loss, "start") for loss in objective.losses.values())
        if inherits and teacher is not None and teacher.renormalizes:
            say(
                "warning: the student may start with layers of the teacher, which were trained on images that were "
                "normalized in another way; data with the teacher's mean and std suits them better"
            )
        objective.start(self.student, None if teacher is None else teacher.network)
        if objective.previews and isinstance(self.scheduler, str) and self.epochs != PUBLISHED_EPOCHS:
            note = DIFFICULTY_SCHEDULERS.facts(parse(self.scheduler)[0]).get("rescaled")
            if note:
                say(note.format(published=PUBLISHED_EPOCHS, epochs=self.epochs, factor=PUBLISHED_EPOCHS / self.epochs))

    def refuse_impossible(self) -> None:
        """Refuse what an untrained teacher shows to be impossible, before hours are spent on training it.

        Terms that are optional are left out of this.

        Raises:
            UserError: as :meth:`objective` does.
        """
        surely = [term for term in self.terms if not term.optional]
        if surely:
            self.objective(self.untrained_teacher(), surely)


def make_task(task: str | Task | None, data: Any, **options: Any) -> Task:
    """The task by name, or the one that a data set is for; a task that is given is passed through.

    Args:
        data: a name of ``DATASETS``, or a :class:`Data`. options: of :func:`pckd.distill`, for a task that has them.

    Raises:
        UserError: an unknown name, or an option that the task does not have.
    """
    if isinstance(task, Task):
        return task
    if task is None:
        own = DATASETS.facts(parse(data)[0]).get("task") if isinstance(data, str) else data.task
        task = str(own or "classification")
    factory = TASKS.get(parse(task)[0])
    known, usual = options_of(factory), {"flip": True, "view_statistics": "joint"}
    cached = options.get("cached", False) if "cached" in known else options.pop("cached", False)
    for name in [name for name in options if name not in known]:
        if options.pop(name) != usual.get(name):
            raise UserError(f"the task {task!r} has no option {name!r}; leave it out")
    built = ask(f"task {task!r}", build, TASKS, task, **options)
    built.name = parse(task)[0]
    if cached:
        built.cache_options()  # refuses where the task has none
    return built


def load_trained(task: Task, name: str, data: Data, weights: str | os.PathLike[str]) -> nn.Module:
    """A network by name with these weights.

    Raises:
        UserError: unknown name, no such file, or weights of another network or of other classes.
    """
    data = task.settled(data, name, name, weights)[0]
    network = task.make_network(name, data)
    load_weights(network, weights)
    task.check_classes(os.fspath(weights), network, data)
    return network


def plan(
    *,
    task: Task,
    data: Data,
    student: str | nn.Module,
    teacher: str | nn.Module | None,
    method: str | Sequence[Term],
    difficulty: str | Metric = "cross_entropy",
    scheduler: str | Scheduler | None = None,
    centers: str | CenterRule = "classifier",
    batch_size: int = 64,
    epochs: int = PUBLISHED_EPOCHS,
    lr: float | None = None,
    seed: int = 0,
    cached: bool = False,
    teacher_weights: str | os.PathLike[str] | None = None,
) -> Plan:
    """Resolve what a caller has named. Nothing is trained or written.

    Args:
        student, teacher, method, difficulty, scheduler, centers, batch_size, epochs, lr: see :func:`pckd.distill`.
        cached: there is a teacher cache. teacher_weights: of a named teacher, for what they say of the classes.

    Raises:
        UserError: unknown names or options, a missing teacher, or data or networks that cannot be used.
    """
    named = student
    if not isinstance(student, str):
        student = task.make_network(student, data, "the student")
    if teacher is not None and not isinstance(teacher, str):
        teacher = task.make_network(teacher, data, "the teacher")
    teacher, terms, chosen_scheduler, published = choose(task, method, student, teacher, scheduler)
    data, notes = task.settled(data, student, teacher, teacher_weights)
    for name, options in published.items():
        listed = ", ".join(f"{option}={value:g}" for option, value in options.items())
        notes.append(f"{name}: options of the pair {bare(str(teacher))}>{bare(str(student))}: {listed}")
    for registry, spec in ((DIFFICULTY_METRICS, difficulty), (DIFFICULTY_SCHEDULERS, chosen_scheduler)):
        _function(registry, spec)
    if isinstance(centers, str):
        name, given = parse(centers)
        check_options(f"{CENTER_RULES.name}: {name}", CENTER_RULES.get(name), given, ("setup",))
    task.check(data, terms)
    lr, said = _learning_rate(lr, method, student, batch_size, task.recipe)
    torch.manual_seed(seed)
    network = task.make_network(student, data, "the student")
    for role, answering in (("student", network), ("teacher", teacher)):
        if isinstance(answering, Adapted):
            said.append(f"the {role}, {answering.describe()}")
    check_trainable(network)
    terms = task.terms_for(network, terms)
    if isinstance(teacher, nn.Module):
        check_apart(network, teacher)
    return Plan(
        task=task,
        data=data,
        student=network,
        student_name=named,
        teacher=teacher,
        method=method,
        terms=terms,
        published=published,
        difficulty=difficulty,
        scheduler=chosen_scheduler,
        centers=centers,
        batch_size=min(batch_size, len(data.train)),
        epochs=epochs,
        lr=lr,
        seed=seed,
        cached=cached and needs_teacher(terms),
        notes=notes + said,
    )


def make_objective(
    terms: Sequence[Term],
    setup: Setup,
    *,
    difficulty: str | Metric,
    scheduler: str | Scheduler,
    centers: str | CenterRule,
) -> Objective:
    """The objective of these terms; its other parts by name or as objects."""
    if isinstance(centers, str):
        rule = ask(f"center rule {centers!r}", build, CENTER_RULES, centers, setup)
    else:
        # A run begins with the rule as it was given, and so does the next one.
        rule = copy_of(centers, "the center rule", "each run") if isinstance(centers, nn.Module) else centers
    return Objective(
        terms,
        setup,
        difficulty=_function(DIFFICULTY_METRICS, difficulty),
        scheduler=_function(DIFFICULTY_SCHEDULERS, scheduler),
        centers=rule,
    )


class Choice(NamedTuple):
    """What follows from the names alone."""

    teacher: str | nn.Module | None
    terms: list[Term]
    scheduler: str | Scheduler
    published: dict[str, dict[str, Any]]


def choose(
    task: Task,
    method: str | Sequence[Term],
    student: str | nn.Module,
    teacher: str | nn.Module | None,
    scheduler: str | Scheduler | None,
) -> Choice:
    """The teacher, where none is named; the terms with the pair's published options; the scheduler.

    Raises:
        UserError: unknown names or options, or a missing teacher.
    """
    terms = task.terms(method_terms(method))
    if teacher is None and needs_teacher(terms):
        if not isinstance(student, str):
            raise UserError(f"method {describe(method)!r} needs a teacher, and none is given")
        BACKBONES.get(parse(student)[0])  # a misspelled student is not one without a usual teacher
        teacher = usual_teacher(student)
    published = pair_options(method, student, teacher)
    if published:
        terms = task.terms(method_terms(method, student, teacher))
    return Choice(teacher, *schedule_terms(terms, scheduler), published)


def _learning_rate(
    lr: float | None, method: str | Sequence[Term], student: str | nn.Module, batch_size: int, otherwise: Recipe
) -> tuple[float, list[str]]:
    """The learning rate at the start: as given, or the method's, or the recipe's; and what to say of it."""
    published = method_lr(method, student)
    recipe = recipe_for(student if isinstance(student, str) else "", otherwise=otherwise)
    usual = published or (recipe.lr if isinstance(student, str) else None)
    if lr is None:
        said = [] if published is None else [f"{describe(method)}: learning rate {published:g}, as published"]
        return (otherwise.lr if usual is None else usual), said
    if usual is not None:
        # Goyal et al., arXiv 1706.02677: the rate grows with the batch.
        fitting = usual * batch_size / recipe.batch_size
        if not 1 / TOLERATED <= lr / fitting <= TOLERATED:
            return lr, [
                f"warning: learning rate {lr:g} is far from what fits a batch of {batch_size}: {usual:g} was published "
                f"for {recipe.batch_size}, which makes {fitting:g} by the linear rule"
            ]
    return lr, []


def _function(registry: Any, spec: Any) -> Any:
    return build(registry, spec) if isinstance(spec, str) else spec
