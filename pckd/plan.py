"""From names to objects, once: what a run would be, and the refusal of what cannot be, before anything is trained."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from model_zoo import Preprocessing, Recipe, load_weights, preprocessing_of, read_metadata, recipe_for, usual_teacher
from model_zoo.adapting import Adapted, WithLayers
from model_zoo.checkpoints import OtherClasses
from model_zoo.pairs import bare
from pckd.data.load import Data
from pckd.engine.cache import NO_MAPS
from pckd.engine.fingerprint import digest
from pckd.engine.progress import own_random_state
from pckd.engine.teacher import FrozenTeacher, SeveralTeachers
from pckd.given import check_apart, check_gradients, check_trainable, copy_of
from pckd.objective import CentersOfEach, Metric, Objective, Scheduler, layers_of, needs_teacher
from pckd.ops import PUBLISHED_EPOCHS, SEVERAL, mean_shapes
from pckd.tasks import Task
from pckd.terms import (
    Teachers,
    describe,
    method_terms,
    pair_options,
    placed,
    recipe_changes,
    schedule_terms,
    teachers_of,
)
from registry import (
    BACKBONES,
    CENTER_RULES,
    DATASETS,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    OPTIMIZERS,
    TASKS,
    CenterRule,
    NotApplicable,
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

__all__ = [
    "Choice",
    "Plan",
    "choose",
    "class_list",
    "load_trained",
    "make_objective",
    "make_task",
    "plan",
    "start_from",
]

TOLERATED = 4.0
"""Factor by which a learning rate may differ from the linear rule before the log says so."""


@dataclass(eq=False)
class Plan:
    """What a run would be. Made by :func:`plan`.

    Attributes:
        student: the network, untrained or as it was given. student_name: as the caller named it.
        teacher: a name, a network, or None where there is none; of several teachers a list of them.
        terms: of the method, with the pair's published options. published: these options, by method.
        initial_lr: learning rate of the initial epochs, where it is not ``lr``.
        batch_size: images of the smallest batch. cached: the teacher's logits and embedding are kept, its maps not.
        notes: what to tell the user. started_from: the file of weights that the student has (:meth:`start_from`).
    """

    task: Task
    data: Data
    student: nn.Module
    student_name: str | nn.Module
    teacher: Teachers
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
    initial_lr: float | None = None
    notes: list[str] = field(default_factory=list)
    started_from: str = ""
    _probed: dict[tuple[str, int | None], Shapes] = field(default_factory=dict, init=False)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term looks at a teacher."""
        return needs_teacher(self.terms)

    @property
    def teachers(self) -> list[str | nn.Module]:
        """All teachers."""
        return teachers_of(self.teacher)

    def untrained_teacher(self) -> FrozenTeacher | SeveralTeachers | None:
        """The named teacher before its training; the one that was given; None where there is none."""
        networks = [self.task.make_network(teacher, self.data) for teacher in self.teachers]
        return together(
            [FrozenTeacher(one, resizing=self.task.resizing("the teacher", one, self.data.train)) for one in networks]
        )

    def objective(
        self,
        teacher: FrozenTeacher | SeveralTeachers | None,
        terms: Sequence[Term] | None = None,
        *,
        num_samples: int | None = None,
    ) -> Objective:
        """The objective under this teacher.

        Args:
            terms: instead of the plan's own. num_samples: pretended size of the training set.

        Raises:
            UserError: a term cannot work for this pair of networks, these options or this data.
        """
        task, data, terms = self.task, self.data, self.terms if terms is None else terms
        setup = self._setup(teacher, terms)
        if num_samples:
            setup = setup._replace(
                num_samples=num_samples,
                members=tuple(own._replace(num_samples=num_samples) for own in setup.members),
            )
        # Seeded anew, so that the projections do not depend on whether the teacher was trained just now.
        torch.manual_seed(self.seed + 1)
        objective = make_objective(
            terms, setup, difficulty=self.difficulty, scheduler=self.scheduler, centers=self.centers
        )
        if self.started_from and objective.inherits:
            raise NotApplicable(
                f"the method lets the student inherit weights of its teacher, and it has those of {self.started_from}: "
                "leave student_weights out, or let it inherit nothing, as in 'pckd_plus(inherit=\"nothing\")'"
            )
        if teacher is not None:
            objective.check_start(self.student, *(member.network for member in teacher.members))
        check_gradients(self.student, objective)
        objective.check_rows(task.sizes(self.batch_size, objective))
        task.check_batch(self.student, data, self.batch_size, objective)
        return objective

    def _setup(self, teacher: FrozenTeacher | SeveralTeachers | None, terms: Sequence[Term]) -> Setup:
        task, data = self.task, self.data
        student = self._shapes(self.student, "student")
        needed = needs_teacher(terms)
        if isinstance(teacher, SeveralTeachers) and needed:
            members = []
            for member in teacher.members:
                with said_of(member.position, self.teachers):
                    members.append(self._setup(member, terms))
            mean = task.setup(student, mean_shapes([own.teacher for own in members]), data, SEVERAL)
            return mean._replace(members=tuple(members))
        shapes = student
        if isinstance(teacher, FrozenTeacher):
            shapes = self._shapes(teacher.network, "teacher", teacher.position)
        if not needed:
            # In an objective that does not look at it the student stands in its place.
            shapes = student
        elif teacher is not None and self.cached:
            shapes = shapes._replace(maps=NO_MAPS, preacts=NO_MAPS, layers=NO_MAPS)
        if isinstance(teacher, FrozenTeacher) and needed:
            task.check_pair(self.student, teacher.network, data)
        return task.setup(student, shapes, data, None if teacher is None else teacher.classifier)

    def _shapes(self, network: nn.Module, role: str, position: int | None = None) -> Shapes:
        """Probed once: a trained teacher has the shapes of the untrained one."""
        if (role, position) not in self._probed:
            reading = self.reading(network, role, position=position)
            self._probed[role, position] = self.task.shapes(reading, self.data, role)
        return self._probed[role, position]

    def reading(
        self, network: nn.Module, role: str, terms: Sequence[Term] | None = None, *, position: int | None = None
    ) -> nn.Module:
        """The network, whose outputs also have the layers that the terms read.

        Args:
            role: "student" or "teacher". terms: instead of the plan's own. position: of one of several teachers.

        Raises:
            UserError: it has no such module.
        """
        terms = self.terms if terms is None else terms
        paths = layers_of([term for term in terms if position is None or term.teacher == position], role)
        return WithLayers(network, paths, f"the {role}") if paths else network

    def freeze(
        self, networks: Sequence[nn.Module], say: Callable[[str], None]
    ) -> FrozenTeacher | SeveralTeachers | None:
        """The teachers, ready to answer about this plan's data.

        Args:
            networks: of all teachers, in their order; none where they are not looked at.
            say: told where the images of one are of another size, or were normalized in another way than the data's.

        Raises:
            UserError: one was trained on other classes.
        """
        frozen = []
        for position, network in enumerate(networks, 1):
            alone, name = len(networks) == 1, describe(self.teachers[position - 1])
            with said_of(position, self.teachers):
                called = f"teacher {position}, {name}"
                tell = say if alone else lambda text, who=called: say(f"{who}{text.removeprefix('the teacher')}")
                resizing = self.task.resizing("the teacher", network, self.data.train, tell)
                shown = self.task.renormalization(network, self.data, tell)
                asked = self.reading(network, "teacher", position=None if alone else position)
                frozen.append(FrozenTeacher(network, shown, resizing, asked=asked))
        return together(frozen)

    def start_from(self, weights: str | os.PathLike[str], say: Callable[[str], None]) -> dict[str, Any]:
        """Let the student start with these weights (:func:`start_from`); says what is special. Their fingerprint."""
        self.started_from = os.fspath(weights)
        kept, record, fingerprint = start_from(self.task, self.student, self.data, weights)
        layer = f", but for a new last layer ({', '.join(kept)}): the file's is of other classes" if kept else ""
        say(f"student: starts with the weights of {self.started_from}{layer}")
        own = self.task.preprocessing(self.data)
        if record is not None and own is not None and not record.normalizes_as(own.mean, own.std):
            say(
                f"warning: the weights of {self.started_from} were trained on images that were normalized in another "
                "way; data with their mean and std suits them better"
            )
        return fingerprint

    def start(
        self, objective: Objective, teacher: FrozenTeacher | SeveralTeachers | None, say: Callable[[str], None]
    ) -> None:
        """Let the losses set weights of the student, before a new run's first step; say what is special about it."""
        if objective.inherits and teacher is not None and teacher.renormalizes:
            say(
                "warning: the student may start with layers of the teacher, which were trained on images that were "
                "normalized in another way; data with the teacher's mean and std suits them better"
            )
        objective.start(self.student, *([] if teacher is None else [member.network for member in teacher.members]))
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
        untrained = self.untrained_teacher()
        for name, member in zip(self.teachers, [] if untrained is None else untrained.members, strict=True):
            if isinstance(name, str) and member.resizing is not None:
                height, width = member.resizing[0]
                raise UserError(
                    f"the teacher {name} cannot be trained on the images of {self.data.name}: it takes "
                    f"{height}x{width} pixels alone; give teacher_weights, or build it for these images"
                )
        surely = [term for term in self.terms if not term.optional]
        if surely:
            self.objective(untrained, surely)


def together(teachers: Sequence[FrozenTeacher]) -> FrozenTeacher | SeveralTeachers | None:
    """One teacher as it is, several as one, None where there is none."""
    return SeveralTeachers(teachers) if len(teachers) > 1 else next(iter(teachers), None)


@contextlib.contextmanager
def said_of(position: int, teachers: Sequence[str | nn.Module]) -> Iterator[None]:
    """Inside, what is refused is said to be about this one of the teachers, where there are several."""
    try:
        yield
    except UserError as error:
        if len(teachers) == 1:
            raise
        raise type(error)(f"teacher {position}, {describe(teachers[position - 1])}: {error}") from error


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
    known, usual = options_of(factory), {"flip": True, "view_statistics": "joint", "balance": "none"}
    cached = options.get("cached", False) if "cached" in known else options.pop("cached", False)
    for name in [name for name in options if name not in known]:
        if options.pop(name) != usual.get(name):
            raise UserError(f"the task {task!r} has no option {name!r}; leave it out")
    built = ask(f"task {task!r}", build, TASKS, task, **options)
    built.name = parse(task)[0]
    if cached:
        built.cache_options()  # refuses where the task has none
    return built


def load_trained(
    task: Task,
    name: str,
    data: Data,
    weights: str | os.PathLike[str],
    classes: Sequence[int | str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> nn.Module:
    """A network by name with these weights.

    Args:
        classes, say: of a teacher that has more classes than the data, or others (:meth:`Task.matched`).

    Raises:
        UserError: unknown name, no such file, or weights of another network or of other classes.
    """
    data = task.settled(data, name, [name], [weights])[0]
    network, file = task.make_network(name, data, "the teacher"), os.fspath(weights)
    try:
        load_weights(network, weights)
    except OtherClasses as error:
        record = Preprocessing.from_metadata(read_metadata(weights))
        named = record is not None and set(map(str, data.train.classes)) <= set(record.classes)
        if classes is None and not named:
            raise UserError(f"{error}; of a teacher, say which of them with teacher_classes") from None
        network = task.make_network(name, data, num_classes=error.classes)
        load_weights(network, weights)
    network = task.matched(file, network, data, classes, say)
    task.check_classes(file, network, data)
    return network


def start_from(
    task: Task, student: nn.Module, data: Data, weights: str | os.PathLike[str]
) -> tuple[tuple[str, ...], Preprocessing | None, dict[str, Any]]:
    """Fill a student with weights to go on from.

    Returns:
        the names of the classifier's tensors, where it is left as it was because the file's is of other classes; the
        file's record of its preprocessing; the fingerprint of what was loaded.

    Raises:
        UserError: no such file, or weights of another network.
    """
    own = task.preprocessing(data)
    loaded = load_weights(student, weights, classes=None if own is None else own.classes)
    taken = {key: value for key, value in student.state_dict().items() if key not in loaded.missing}
    return loaded.missing, Preprocessing.from_metadata(loaded.meta), {"weights": digest(taken)}


def class_list(given: Sequence[int | str] | str | os.PathLike[str] | None) -> Sequence[int | str] | None:
    """The teacher's classes as a list: as they are given, or the lines of a file."""
    if given is None or not isinstance(given, (str, os.PathLike)):
        return given
    try:
        with open(given, encoding="utf-8-sig") as file:
            return [line.strip() for line in file if line.strip()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file of text"
        raise UserError(f"teacher_classes: {os.fspath(given)!r}: {reason}; give a file with one name a line") from None


def plan(
    *,
    task: Task,
    data: Data,
    student: str | nn.Module,
    teacher: Teachers,
    method: str | Sequence[Term],
    difficulty: str | Metric = "cross_entropy",
    scheduler: str | Scheduler | None = None,
    centers: str | CenterRule = "classifier",
    batch_size: int = 64,
    epochs: int = PUBLISHED_EPOCHS,
    lr: float | None = None,
    optimizer: Any = None,
    label_smoothing: float = 0.0,
    seed: int = 0,
    cached: bool = False,
    teacher_classes: Sequence[int | str] | None = None,
    teacher_weights: Any = None,
) -> Plan:
    """Resolve what a caller has named. Nothing is trained or written.

    Args:
        student, teacher, method, difficulty, scheduler, centers: see :func:`pckd.distill`.
        batch_size, epochs, lr, optimizer, label_smoothing: likewise.
        cached: there is a teacher cache.
        teacher_classes: of a teacher that is given, or whose name says that it is pretrained (:func:`pckd.distill`).
        teacher_weights: of named teachers, for what they say of the classes.

    Raises:
        UserError: unknown names or options, a missing teacher, or data or networks that cannot be used.
    """
    named = student
    if not isinstance(student, str):
        student = task.make_network(student, data, "the student")
    asked: dict[str, Any] = {} if teacher_classes is None else {"num_classes": "own"}
    networks = teachers_of(teacher)
    if teacher_classes is not None and len(networks) > 1:
        raise UserError(f"teacher_classes are those of one teacher, and there are {len(networks)}; leave them out")
    for at, one in enumerate(networks):
        if not isinstance(one, str):
            with said_of(at + 1, networks):
                networks[at] = task.make_network(one, data, "the teacher", **asked)
    if networks:
        teacher = networks if len(networks) > 1 else networks[0]
    teacher, terms, chosen_scheduler, published = choose(task, method, student, teacher, scheduler)
    teachers = teachers_of(teacher)
    files = teacher_weights if isinstance(teacher_weights, list) else [teacher_weights] * len(teachers)
    data, notes = task.settled(data, student, teachers, files)
    for name, options in published.items():
        listed = ", ".join(f"{option}={value:g}" for option, value in options.items())
        pair = f"the pair {bare(str(teacher))}>{bare(str(student))}" if len(teachers) == 1 else "its pair"
        notes.append(f"{name}: options of {pair}: {listed}")
    looking = [term for term in terms if needs_teacher([term])]
    if len(teachers) > 1 and looking and all(term.teacher is not None and not term.previewed for term in looking):
        for position in set(range(1, len(teachers) + 1)) - {term.teacher for term in looking}:
            notes.append(
                f"warning: no term looks at teacher {position}, {describe(teachers[position - 1])}: leave it out"
            )
    for registry, spec in ((DIFFICULTY_METRICS, difficulty), (DIFFICULTY_SCHEDULERS, chosen_scheduler)):
        _function(registry, spec)
    if isinstance(centers, str):
        name, given = parse(centers)
        check_options(f"{CENTER_RULES.name}: {name}", CENTER_RULES.get(name), given, ("setup",))
    if label_smoothing:
        terms = _smoothed(terms, label_smoothing)
    task.check(data, terms)
    changes, initial_lr = recipe_changes(method, student, teacher), None
    if optimizer is None:
        lr, said = _learning_rate(lr, method, changes.get("lr"), student, batch_size, task.recipe)
        if any(term.initial for term in terms) and (initial_lr := changes.get("initial_lr")):
            said.append(f"{describe(method)}: learning rate {initial_lr:g} in the initial epochs, as published")
    else:
        usual = OPTIMIZERS.facts(parse(optimizer)[0]).get("lr") if isinstance(optimizer, str) else None
        lr, said = float(lr or usual or 0.0), []
        if not lr:
            raise UserError("nobody says at which learning rate this optimizer is started; give lr")
    if published_epochs := changes.get("epochs"):
        shares = ", ".join(f"{milestone / published_epochs:g}" for milestone in Recipe().milestones)
        said.append(
            f"{describe(method)}: published with epochs={published_epochs}, schedule='multistep(milestones=({shares}))'"
        )
    torch.manual_seed(seed)
    network = task.make_network(student, data, "the student")
    if isinstance(teacher, str) and teacher_classes is not None:
        teachers = [_pretrained(task, teacher, data)]
    for role, answering in (("student", network), *(("teacher", teacher) for teacher in teachers)):
        if isinstance(answering, Adapted):
            said.append(f"the {role}, {answering.describe()}")
    check_trainable(network)
    terms = task.terms_for(network, terms)
    for at, one in enumerate(teachers):
        if isinstance(one, nn.Module):
            check_apart(network, one)
            with said_of(at + 1, teachers):
                teachers[at] = task.matched("the teacher", one, data, teacher_classes, said.append)
    if teachers:
        teacher = teachers if len(teachers) > 1 else teachers[0]
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
        initial_lr=initial_lr,
        notes=notes + said,
    )


def _pretrained(task: Task, name: str, data: Data) -> nn.Module:
    """A teacher by its name alone, with its own weights and classes.

    Raises:
        UserError: its name brings no weights.
    """
    with own_random_state(torch.device("cpu")):
        network = task.make_network(name, data, "the teacher", num_classes="own")
    if preprocessing_of(network) is None:
        raise UserError(f"teacher_classes: the name {name} brings no weights with it; give teacher_weights")
    network.__name__ = name  # type: ignore[assignment]
    return network


def make_objective(
    terms: Sequence[Term],
    setup: Setup,
    *,
    difficulty: str | Metric,
    scheduler: str | Scheduler,
    centers: str | CenterRule,
) -> Objective:
    """The objective of these terms; its other parts by name or as objects."""

    def rule_of(setup: Setup) -> CenterRule:
        if isinstance(centers, str):
            return ask(f"center rule {centers!r}", build, CENTER_RULES, centers, setup)
        # A run begins with the rule as it was given, and so does the next one.
        return copy_of(centers, "the center rule", "each run") if isinstance(centers, nn.Module) else centers

    if setup.members:
        named = sorted({int(term.teacher) for term in terms if term.weight and term.teacher is not None})
        rule: CenterRule = CentersOfEach({at: rule_of(setup.of_teacher(at)) for at in named})
    else:
        rule = rule_of(setup)
    return Objective(
        terms,
        setup,
        difficulty=_function(DIFFICULTY_METRICS, difficulty),
        scheduler=_function(DIFFICULTY_SCHEDULERS, scheduler),
        centers=rule,
    )


class Choice(NamedTuple):
    """What follows from the names alone."""

    teacher: Teachers
    terms: list[Term]
    scheduler: str | Scheduler
    published: dict[str, dict[str, Any]]


def choose(
    task: Task,
    method: str | Sequence[Term],
    student: str | nn.Module,
    teacher: Teachers,
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
    terms = placed(terms, teacher)
    return Choice(teacher, *schedule_terms(terms, scheduler), published)


def _smoothed(terms: Sequence[Term], label_smoothing: float) -> list[Term]:
    """The terms with the label smoothing, where it has none of its own, in the cross entropy with the labels.

    Raises:
        UserError: there is no such term.
    """
    supervised = [isinstance(term.loss, str) and parse(term.loss)[0] == "cross_entropy" for term in terms]
    if not any(supervised):
        raise UserError("label_smoothing: no term is a cross entropy with the labels; leave it out")
    given = {"label_smoothing": label_smoothing}
    return [
        replace(term, options={**given, **term.options}) if is_one else term
        for term, is_one in zip(terms, supervised, strict=True)
    ]


def _learning_rate(
    lr: float | None,
    method: str | Sequence[Term],
    published: float | None,
    student: str | nn.Module,
    batch_size: int,
    otherwise: Recipe,
) -> tuple[float, list[str]]:
    """The learning rate at the start: as given, or the method's, or the recipe's; and what to say of it."""
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
