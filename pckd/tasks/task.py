"""The contract of a task, and the module that a run trains.

Shapes: B images a step, N rows (instances) that the task makes of them, K classes, D embedding width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn
from torch.profiler import record_function

from model_zoo import Preprocessing, Recipe, set_preprocessing
from model_zoo.probe import check_network
from pckd.device import Device
from pckd.distributed import uneven_rows
from pckd.objective import Objective
from pckd.ops import mean_answer
from registry import (
    BACKBONES,
    Context,
    Instances,
    Output,
    PluginError,
    Progress,
    Setup,
    Shapes,
    Term,
    UserError,
    ask,
    build,
    parse,
)

__all__ = ["BatchLoader", "DistillationTask", "Step", "Task", "Teacher"]


class Teacher(Protocol):
    """A frozen network (:class:`pckd.engine.teacher.FrozenTeacher`)."""

    @property
    def network(self) -> nn.Module:
        """The network itself."""
        ...

    @property
    def classifier(self) -> nn.Linear:
        """Its last linear layer."""
        ...

    def __call__(self, x: Tensor) -> Output:
        """Its answer, without gradient."""
        ...

    def answer(self, batch: Any, images: Tensor) -> Output:
        """Its answer to a batch, remembered where that can be."""
        ...


class BatchLoader(Protocol):
    """Yields the batches of a split: whatever the task's ``pair`` and ``evaluate`` take. ``len(batch)`` is its images.

    Everything random in a batch follows from the seed, the epoch and the batch's number, so that a resumed run sees
    what the uninterrupted one would have seen.
    """

    def __len__(self) -> int:
        """Batches an epoch, for this process."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch (counted from 1), without the first ``start`` of them."""
        ...

    def say_bad(self) -> None:
        """Log what could not be read, after an epoch of training; what derives from this class need not."""


class Task:
    """Base class of tasks. A subclass is registered in ``TASKS``; its keyword arguments are the task's options.

    What must be given: ``metric``, :meth:`shapes`, :meth:`loader`, :meth:`pair` and :meth:`evaluate`.
    """

    name: str = ""
    """The name it is registered by."""
    metric: str = "score"
    """What a run is judged by, an entry of what :meth:`evaluate` returns: in percent, and higher is better."""
    other_metrics: tuple[str, ...] = ()
    """What ``metric`` may be instead, in a run with other data or networks."""
    columns: tuple[str, ...] = ()
    """Other entries of it that result.json names."""
    rows: tuple[str, ...] = ("upright", "all")
    """The sets of rows that a term may ask for. In a task without views these two are all rows."""
    stable_index: bool = False
    """Whether ``Instances.index`` says which sample a row is, the same in every epoch."""
    knows: tuple[str, ...] = ()
    """What ``Instances.images`` has beside maps: ``"boxes"``, ``"pixels"``."""
    test_batch: int = 256
    """Images a batch where a network is measured, or as many as in training."""
    pictures: tuple[str, ...] = ()
    """Kinds of pictures (:data:`pckd.plots.KINDS`) that show what a student of this task has learned."""
    demonstration: Mapping[str, Any] = MappingProxyType({})
    """Arguments of :func:`pckd.distill` of a run that takes minutes on two CPU cores, with data drawn by itself."""

    titles: Mapping[str, str] = MappingProxyType({})
    """How people write the metric and the columns, where not as they are named."""

    @property
    def title(self) -> str:
        """How people write the metric."""
        return self.titles.get(self.metric, self.metric)

    def chance(self, data: Any) -> float:
        """The metric, in percent, of an answer by chance; 0 where that is not known."""
        return 0.0

    def terms(self, terms: Sequence[Term]) -> list[Term]:
        """A method's terms as this task sums them: where a network has losses of its own, these instead of the
        cross entropy, for instance."""
        return list(terms)

    def terms_for(self, student: nn.Module, terms: Sequence[Term]) -> list[Term]:
        """The terms of :meth:`terms` as this very student needs them."""
        return list(terms)

    def check(self, data: Any, terms: Sequence[Term]) -> None:
        """Refuse data, or a method, that this task's options make impossible, before anything is trained.

        Raises:
            UserError: in one line.
        """

    def settled(
        self,
        data: Any,
        student: str | nn.Module,
        teachers: Sequence[str | nn.Module],
        weights: Sequence[str | os.PathLike[str] | None],
    ) -> tuple[Any, list[str]]:
        """The data with what only the networks can say of it, its classes, and what to tell the user.

        Args:
            weights: of each teacher, the file of a named one.
        """
        return data, []

    def check_teachable(self, teacher: str, data: Any) -> None:
        """Refuse data that a named teacher cannot be trained on first.

        Raises:
            UserError: says what to give.
        """

    def measure_teacher(
        self, teacher: Any, loader: BatchLoader, device: Device, say: Callable[[str], None]
    ) -> float | None:
        """The teacher's own score; None, where it has none, and why."""
        if not getattr(getattr(teacher, "network", None), "gives_logits", True):
            say("not measured, because it has no classifier")
            return None
        score: float = self.evaluate(teacher, loader, device)[self.metric]
        return score

    def check_batch(self, student: nn.Module, data: Any, images: int, objective: Objective) -> None:
        """Refuse a student that cannot be trained on a batch of ``images`` images.

        Raises:
            UserError: says what would work.
        """

    def check_pair(self, student: nn.Module, teacher: nn.Module, data: Any) -> None:
        """Refuse a teacher that cannot answer about the student's rows; it may be untrained.

        Raises:
            UserError: says what would work.
        """

    def make_network(
        self,
        network: str | nn.Module,
        data: Any,
        role: str = "a network",
        *,
        num_classes: int | Literal["own"] | None = None,
    ) -> nn.Module:
        """Build a backbone by name for this data, or pass a module through.

        Args:
            role: "the student" or "the teacher", for messages.
            num_classes: where it is not the data's; "own": as many as the weights have that its name brings.

        Raises:
            UserError: an unknown name, or no network.
        """
        if not isinstance(network, str):
            check_network(network, role)
            return network
        own = BACKBONES.facts(parse(network)[0]).get("task", self.name)
        if own != self.name:
            raise UserError(f"{role} {network} is a network for {own}, and the task is {self.name}; use task={own}")
        options, number = self.network_options(data), num_classes or data.train.num_classes
        if number == "own":
            # Only families know how many classes their weights have; a plug-in's network is built as it is.
            number = None if ":" in parse(network)[0] else data.train.num_classes
        built = ask(f"backbone {network!r}", build, BACKBONES, network, number, **options)
        if not isinstance(built, nn.Module):
            raise PluginError(f"backbone {network!r} returned {type(built).__name__}: it must return an nn.Module")
        if num_classes is None:
            # It will be trained on this data, or the file of its weights has a record.
            set_preprocessing(built, None)
        return built

    def network_options(self, data: Any) -> dict[str, Any]:
        """What a backbone is built with beside the number of classes."""
        return {}

    def preprocessing(self, data: Any) -> Preprocessing | None:
        """What a network that is trained on this data carries as its record."""
        return None

    def adapted(self, network: nn.Module, split: Any) -> nn.Module:
        """The network as this task calls it: a plain module may be wrapped."""
        return network

    def as_trained(self, network: nn.Module, split: Any, say: Callable[[str], None]) -> Any:
        """The split as it was prepared for this network in its training; refuses what cannot be measured.

        Args:
            say: told where that is not as the split says.
        """
        return split

    def check_classes(self, what: str, network: nn.Module, data: Any) -> None:
        """Refuse a network that was trained on other classes than the data's, or on the same in another order.

        Args:
            what: the network, for messages.
        """

    def renormalization(
        self, teacher: nn.Module, data: Any, say: Callable[[str], None]
    ) -> tuple[Sequence[float], Sequence[float]] | None:
        """Scale and shift per channel, where a teacher was trained on images that were normalized in another way.

        Raises:
            UserError: the teacher was trained on other classes.
        """
        return None

    def resizing(
        self, what: str, network: nn.Module, split: Any, say: Callable[[str], None] | None = None
    ) -> tuple[tuple[int, int], str] | None:
        """Size (height, width) and interpolation, where a network that teaches or is measured is shown images of
        another size than a split's; None where it is shown them as they are.

        Args:
            what: the network, for messages. say: told so.
        """
        return None

    def matched(
        self,
        what: str,
        teacher: nn.Module,
        data: Any,
        classes: Sequence[int | str] | None,
        say: Callable[[str], None],
    ) -> nn.Module:
        """A teacher that answers about the data's classes, where it has more, or others.

        Args:
            what: the teacher, for messages. classes: of the teacher's, one for each of the data's; None: by their
                names, where both know them. say: told where they were matched by their names.

        Raises:
            UserError: it has no such classes.
        """
        if classes is not None:
            raise UserError(f"teacher_classes serves classification, and not the task {self.name!r}; leave it out")
        return teacher

    def shapes(self, network: nn.Module, data: Any, role: str) -> Shapes:
        """What losses need to know of a network that is shown this data.

        Args:
            role: "student" or "teacher", for messages.

        Raises:
            UserError: the network cannot take this data.
        """
        raise NotImplementedError

    def setup(self, student: Shapes, teacher: Shapes, data: Any, classifier: nn.Linear | None) -> Setup:
        """What the losses are built from."""
        rows = Setup(student, teacher, len(data.train), classifier, self.stable_index, self.rows)
        if not student.images or not teacher.images:
            return rows
        images = rows._replace(
            student=student.images, teacher=teacher.images, stable_index=True, teacher_classifier=None, knows=self.knows
        )
        return rows._replace(sets={"images": images})

    def sizes(self, images: int, objective: Objective) -> dict[str, tuple[int, int]]:
        """For each set of rows: how many a batch of ``images`` has at least, and how many of these show one image."""
        return dict.fromkeys(self.rows, (images, 1))

    def loader(
        self, split: Any, batch_size: int, *, train: bool, objective: Objective | None, **options: Any
    ) -> BatchLoader:
        """The batches of a split.

        Args:
            batch_size: images a batch and process. train: shuffle and augment.
            objective: what training batches are for.
            options: ``device``, ``num_workers``, ``rank``, ``world_size``; in training also ``seed``.
        """
        raise NotImplementedError

    def pair(
        self, batch: Any, student: nn.Module, teachers: Sequence[Teacher]
    ) -> tuple[Output, list[Output], Instances]:
        """The student's rows of a batch, each teacher's answer about the same rows, and what the rows are."""
        raise NotImplementedError

    def observe(self, batch: Any, output: Output, objective: Objective) -> dict[str, Tensor]:
        """What a training step tells of itself beside the losses: scalars, averaged over the epoch.

        Args:
            output: the student's, detached.
        """
        return {}

    recipe: Recipe = Recipe()
    """How networks are trained of which no recipe is known."""
    prepares: bool = True
    """Whether networks are only called with :meth:`images`: then they are prepared for speed (folded, compiled)."""

    def images(self, batch: Any) -> Tensor | None:
        """What networks are called with, where that is one tensor of images."""
        return None

    def facts(self, objective: Objective) -> dict[str, Any]:
        """What result.json says of the task's own options."""
        return {}

    def cache_options(self) -> dict[str, Any]:
        """What a teacher's remembered answers depend on: ``pool``, in how many ways each image is augmented, and so on.

        Raises:
            UserError: answers cannot be remembered.
        """
        raise UserError(f"a teacher cache serves classification, and not the task {self.name!r}; leave it out")

    def random_data(self, images: int, classes: int, shape: tuple[int, int, int]) -> Any:
        """A data set of noise with ``images`` images of ``shape`` (C, H, W), to profile a step with."""
        raise UserError(f"the task {self.name!r} has no random data to profile with; give a data set")

    def contract_checks(
        self, networks: Sequence[str], dataset: str | None, data: Any, *, root: str | None
    ) -> list[tuple[str, Callable[[], None]]]:
        """What ``--check`` holds backbones and data sets to: what is checked, and the check (:mod:`pckd.testing`).

        Args:
            networks: names of backbones. dataset: name of the data set, if it has one; data: loaded; root: its folder.
        """
        return []

    def difficulty_report(self, data: Any, device: Device) -> Any:
        """See :class:`pckd.engine.trainer.Report`."""
        raise UserError(f"report_difficulty serves classification, and not the task {self.name!r}; leave it out")

    def scores(self, network: nn.Module, loader: BatchLoader, device: Device) -> Any:
        """What :func:`pckd.evaluate` returns."""
        return self.evaluate(network, loader, device)

    def evaluate(self, network: nn.Module, loader: BatchLoader, device: Device) -> dict[str, Any]:
        """How good a network is: ``metric``, anything else worth a column, and ``by_class``, the metric of each class,
        where there is one.

        In eval mode and without gradient; the network's mode is restored. Each process measures its share, and the
        numbers are those of all.
        """
        raise NotImplementedError


class Step(NamedTuple):
    """What a step has seen."""

    values: dict[str, Tensor]
    """Of the objective."""
    student: Output
    teacher: Output
    """The student's own, without gradient, where there is no teacher; of several teachers their mean."""
    instances: Instances


class DistillationTask(nn.Module):
    """All that is trained, in one module: the student, and the objective with its projections.

    In one module, so that data parallelism, wrapped around it, reduces the gradients of both.
    """

    def __init__(self, task: Task, student: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.task = task
        self.student = student
        self.objective = objective

    def forward(self, batch: Any, teachers: Sequence[Teacher], progress: Progress) -> Step:
        """Where there is no teacher, the student stands in its place."""
        student, answers, instances = self.task.pair(batch, self.student, teachers)
        teacher = mean_answer(answers) if answers else student.detach()
        with record_function("pckd.centers"):
            networks = [teacher.network for teacher in teachers] or [self.student]
            centers = self.objective.find_centers(self.student, *networks)
        context = Context(instances, centers, *progress)
        with uneven_rows(instances.uneven):
            return Step(self.objective(student, teacher, context), student, teacher, instances)
