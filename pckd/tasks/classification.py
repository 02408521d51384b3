"""Image classification: a row is a view of an image, upright, rotated or strongly augmented.

Shapes: B images, V views of each, N = B * V rows (image-major, view 0 upright), K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from model_zoo import Preprocessing, preprocessing_of, probe
from model_zoo.adapting import NO_EMBEDDING, NO_LOGITS, Adapted, Picked, as_backbone, size_taken
from model_zoo.probe import evaluating
from pckd.arguments import POOL
from pckd.data import Loader
from pckd.data.augment import augmentations
from pckd.data.check import check_item, first_item
from pckd.data.load import Data, preprocessing_for
from pckd.data.loader import Balance, check_pool
from pckd.device import Device
from pckd.distributed import add_up
from pckd.given import copy_of
from pckd.objective import Objective
from pckd.ops import mean_answer
from pckd.tasks.task import Task, Teacher
from registry import (
    TASKS,
    Absent,
    Batch,
    DataSplit,
    Instances,
    Output,
    Rows,
    Setup,
    Shapes,
    Term,
    UserError,
    ask,
)
from registry.errors import closest, place_of

__all__ = ["Classification", "Scores", "answers", "image_views"]

ViewStatistics = Literal["joint", "own"]
"""Whether batch norms normalize all views of a batch together, but a strong one, or each view by itself."""


class Scores(NamedTuple):
    """Percentages and the mean cross entropy over a split."""

    top1: float
    top5: float
    loss: float
    samples: int


def image_views(
    labels: Tensor,
    index: Tensor,
    views: int = 1,
    *,
    strong: bool = False,
    targets: Tensor | None = None,
    sample_weights: Tensor | None = None,
) -> Instances:
    """The rows of B images in ``views`` views each.

    Args:
        labels, index: [B]. strong: whether the last view is a strongly augmented one, and the others are rotations.
        targets, sample_weights: [B, K] and [B], as in :class:`registry.Batch`.
    """
    images, device = len(index), index.device
    sets = {}
    if views > 1:
        sets["upright"] = Rows(slice(None, None, views))
    if strong:
        last = views - 1
        row = torch.arange(images * views, device=device).view(images, views)
        sets["all"] = Rows(row[:, :last].flatten(), last)
        sets["strong"] = Rows(row[:, ::last].flatten() if views > 2 else slice(None), 2, strong=True)
    image = torch.arange(images, device=device).repeat_interleave(views)

    def repeated(fact: Any) -> Any:
        return fact if fact is None or isinstance(fact, Absent) else fact.repeat_interleave(views, 0)

    labels, index, targets, sample_weights = map(repeated, (labels, index, targets, sample_weights))
    known: dict[str, Any] = {"targets": targets, "sample_weights": sample_weights, "views": views, "strong": strong}
    return Instances(labels, index, image, sets=sets, weight_of=image, **known)


@TASKS.register("classification")
class Classification(Task):
    """Which of K classes does an image show: judged by top-1 accuracy in percent.

    Args:
        views: rotations shown of each image, 1 to 4; by default 4 where a term looks at all views, else 1.
        view_statistics: what the student's batch norms normalize by: ``"joint"``, all views of a batch together, as
            published, or ``"own"``, each view by its own statistics; evaluation is then by the upright view's. A
            strongly augmented view is a pass of its own, as released with MLD; evaluation is by the statistics of all.
        flip: random horizontal flips in training.
        view_pool: in how many ways each image is augmented, the same in every run; 0: anew each time. By default 16
            where the teacher's answers are ``cached``, else 0.
        balance: what is done in training about classes that have more images than others: ``"none"``; ``"weights"`` in
            the cross entropy, inverse to the size of the class, with mean 1 over the images; or a ``"sampler"`` that
            draws each class equally often (:class:`pckd.data.Loader`).
        augment: names of ``AUGMENTATIONS``, joined by ``+``; by default ``"crop+flip"``.
    """

    name = "classification"
    metric = "top1"
    columns: tuple[str, ...] = ("top5",)
    titles = MappingProxyType({"top1": "top-1", "top5": "top-5"})
    rows = ("upright", "all", "strong", "images")
    stable_index = True
    labeled = True
    """Whether losses may look at the labels."""
    demonstration = MappingProxyType(
        {
            "data": "shapes(image_size=12, train_size=2048, color_cue=0.6)",
            "epochs": 10,
            "teacher_epochs": 24,
            "batch_size": 32,
            "lr": 0.02,
            "teacher_lr": 0.02,
        }
    )

    def __init__(
        self,
        *,
        views: int | None = None,
        view_statistics: ViewStatistics = "joint",
        flip: bool = True,
        view_pool: int | None = None,
        cached: bool = False,
        balance: Balance = "none",
        augment: str | None = None,
    ) -> None:
        augmentations(augment)  # refuses names before anything is trained
        self.augment = augment
        self.views, self.view_statistics, self.flip, self.balance = views, view_statistics, flip, balance
        self.view_pool = (POOL if cached else 0) if view_pool is None else view_pool

    def chance(self, data: Data) -> float:
        return 100 / data.train.num_classes

    def views_of(self, objective_rows: Sequence[str]) -> int:
        """How many rotations a batch has for terms that look at these sets of rows."""
        return self.views if self.views is not None else 4 if "all" in objective_rows else 1

    def check(self, data: Any, terms: Sequence[Term]) -> None:
        if not isinstance(data.train, DataSplit):
            raise UserError(f"{data.name} is data for {data.task}: leave out the task, or name a data set with labels")
        self.check_labels(data)
        if self.labeled and not data.train.labeled:
            raise UserError(f"{data.name} has no labels: leave out the task, or say task='unlabeled'")
        first, rows = first_item(data.train), [term.rows for term in terms if term.weight]
        channels, height, width = first.shape
        if "strong" in rows and (channels not in (1, 3) or first.dtype != torch.uint8):
            kind = str(first.dtype).removeprefix("torch.")
            raise UserError(
                f"the strongly augmented view is made of uint8 images with 1 or 3 channels, and those of {data.name} "
                f"are {kind} with {channels}; use a method without it"
            )
        if self.views_of(rows) > 1 and height != width:
            raise UserError(
                f"rotated views need square images, and those of {data.name} are {height}x{width}; use views=1"
            )
        if self.view_pool:
            check_pool(data.train)

    def check_labels(self, data: Data) -> None:
        """Refuse data whose labels this task cannot learn.

        Raises:
            UserError: says which task can.
        """
        if isinstance(data.train.labels, Absent):
            raise UserError(f"{data.name}: its images have no one label each; use task='multilabel'")

    def settled(self, data: Data, *_: Any) -> tuple[Data, list[str]]:
        mixed = "mixed images have soft labels: what needs one label an image takes that of the larger share"
        return data, [mixed] if augmentations(self.augment).mixes else []

    def network_options(self, data: Data) -> dict[str, Any]:
        return {"in_channels": data.image_shape[0]}

    def make_network(
        self,
        network: str | nn.Module,
        data: Data,
        role: str = "a network",
        *,
        num_classes: int | Literal["own"] | None = None,
    ) -> nn.Module:
        made = super().make_network(network, data, role, num_classes=num_classes)
        if not isinstance(data.train, DataSplit):
            return made
        label = f"backbone {network!r}" if isinstance(network, str) else role
        # A teacher may do without a classifier, but where its classes are asked for.
        expected = data.train.num_classes if role == "the teacher" and num_classes is None else None
        return as_backbone(made, data.image_shape, label, expected)

    def adapted(self, network: nn.Module, split: DataSplit) -> nn.Module:
        return as_backbone(network, check_item(split), "the network")

    def shapes(self, network: nn.Module, data: Data, role: str) -> Shapes:
        channels, *size = data.image_shape
        own = self.resizing(f"the {role}", network, data.train) if role == "teacher" else None
        shapes = probe(network, channels, own[0] if own else (size[0], size[1]), name=f"the {role}")
        if role == "teacher" and not shapes.num_classes:
            return shapes._replace(num_classes=data.train.num_classes)
        if shapes.num_classes != data.train.num_classes:
            raise UserError(
                f"the {role} has {shapes.num_classes} classes, the data set {data.name} {data.train.num_classes}: "
                f"they must be the same{'; say which of them with teacher_classes' * (role == 'teacher')}"
            )
        if role == "student":
            check_layout(network, data.image_shape, f"the {role}")
        return shapes

    def check_batch(self, student: nn.Module, data: Data, images: int, objective: Objective) -> None:
        self._check_reads(objective, images, data.train)
        sets = objective.row_sets
        if images == 1 and (self.view_statistics == "own" or "strong" in sets or self.views_of(sets) == 1):
            weight = next(student.parameters(), torch.empty(0))
            image = torch.zeros(1, *data.image_shape, dtype=weight.dtype, device=weight.device)
            with torch.no_grad():
                # Of a copy, because training it changes its statistics.
                ask(
                    "the student, trained on a batch of one image,",
                    copy_of(student, "the student", "the check of a batch of one image").train(),
                    image,
                )

    def _check_reads(self, objective: Objective, images: int, split: DataSplit) -> bool:
        """Show noise to an objective whose networks or images do not have everything; what it returns is
        :meth:`Objective.check_reads`'s.
        """
        setup = objective.setup
        labeled = self.labeled and not isinstance(split.labels, Absent)
        if setup.student.embedding and setup.teacher.embedding and _has_logits(setup) and labeled:
            return True
        needed = max(getattr(loss, "needs_rows", 1) for loss in objective.losses.values())
        images, views = min(images, max(8, needed)), self.views_of(objective.row_sets)
        strong = "strong" in objective.row_sets
        position = torch.arange(images)
        labels = split.labels if isinstance(split.labels, Absent) else position % setup.student.num_classes
        targets = None if split.targets is None else split.targets[position % len(split)].float()
        instances = self.shown(image_views(labels, position, views + strong, strong=strong, targets=targets))
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            student = _noise(setup.student, len(instances), "student")
            teachers = []
            for own in setup.members or (setup,):
                teacher = _noise(own.teacher, len(instances))
                if not _has_logits(own):
                    teacher = teacher._replace(logits=Absent(NO_LOGITS.format("the teacher")))  # type: ignore[arg-type]
                teachers.append(teacher)
            return objective.check_reads(student, mean_answer(teachers), instances)

    def shown(self, instances: Instances) -> Instances:
        """The rows with what the losses may know of them."""
        return instances

    def preprocessing(self, data: Data) -> Preprocessing:
        return preprocessing_for(data.train)

    def as_trained(self, network: nn.Module, split: DataSplit, say: Callable[[str], None]) -> DataSplit:
        if not split.labeled:
            raise UserError(f"{split.name or 'the data set'} has no labels to measure by; give labeled images")
        own = other_preprocessing("the network", network, split, say)
        channels, height, width = check_item(split)
        resizing = self.resizing("the network", network, split)
        size = resizing[0] if resizing else (height, width)
        classes = probe(network, channels, size, name="the network", classifier=False).num_classes
        if classes < split.num_classes:
            name = split.name or "the data set"
            raise UserError(f"the network has {classes} classes, and {name} {split.num_classes}: it must have as many")
        return split if own is None else replace(split, mean=own.mean, std=own.std)

    def check_classes(self, what: str, network: nn.Module, data: Data) -> None:
        check_classes(what, network, data.train.classes, data.name)

    def renormalization(
        self, teacher: nn.Module, data: Data, say: Callable[[str], None]
    ) -> tuple[Sequence[float], Sequence[float]] | None:
        own = other_preprocessing("the teacher", teacher, data.train, say)
        return None if own is None else own.renormalization(data.train.mean, data.train.std)

    def resizing(
        self, what: str, network: nn.Module, split: DataSplit, say: Callable[[str], None] | None = None
    ) -> tuple[tuple[int, int], str] | None:
        record, shape = preprocessing_of(network) or Preprocessing(), check_item(split)
        size, why = record.image_size, "as in its own training"
        if not any(size):
            size, why = size_taken(network, shape) or (shape[1], shape[2]), "the only size it takes"
        if size == shape[1:]:
            return None
        if say is not None:
            theirs, ours = ("x".join(map(str, pixels)) for pixels in (size, shape[1:]))
            say(
                f"{what}: is shown images resized to {theirs} pixels ({record.interpolation}), {why}; those of "
                f"{split.name or 'the data set'} have {ours}"
            )
        return size, record.interpolation

    def matched(
        self,
        what: str,
        teacher: nn.Module,
        data: Data,
        classes: Sequence[int | str] | None,
        say: Callable[[str], None],
    ) -> nn.Module:
        ours, theirs = tuple(map(str, data.train.classes)), (preprocessing_of(teacher) or Preprocessing()).classes
        if classes is None:
            if ours == theirs or not set(ours) <= set(theirs):
                return teacher
            say(f"{what}: its {len(theirs)} classes were matched with those of {data.name} by their names")
        size = self.resizing(what, teacher, data.train)
        count = probe(teacher, data.image_shape[0], size[0] if size else data.image_shape[1:], name=what).num_classes
        rows = class_rows(what, ours if classes is None else classes, theirs, count, data)
        return Picked(teacher, rows, ours)

    def sizes(self, images: int, objective: Objective) -> dict[str, tuple[int, int]]:
        views = self.views_of(objective.row_sets)
        upright = (images, 1)
        return {"upright": upright, "all": (images * views, views), "strong": (2 * images, 2), "images": upright}

    def loader(
        self, split: DataSplit, batch_size: int, *, train: bool, objective: Objective | None, **options: Any
    ) -> Loader:
        if not train or objective is None:
            return Loader(split, batch_size, train=False, **options)
        return Loader(
            split,
            batch_size,
            train=True,
            views=self.views_of(objective.row_sets),
            strong="strong" in objective.row_sets,
            flip=self.flip,
            augment=self.augment,
            pool=self.view_pool,
            balance=self.balance,
            **options,
        )

    def pair(
        self, batch: Batch, student: nn.Module, teachers: Sequence[Teacher]
    ) -> tuple[Output, list[Output], Instances]:
        answers = [teacher.answer(batch, self.images(batch)) for teacher in teachers]
        facts: dict[str, Any] = {
            "strong": batch.strong,
            "targets": batch.targets,
            "sample_weights": batch.sample_weights,
        }
        instances = image_views(batch.labels, batch.index, batch.views.shape[1], **facts)
        with record_function("pckd.student"):
            return self._answer(student, batch.views, batch.strong), answers, self.shown(instances)

    def _answer(self, student: nn.Module, views: Tensor, strong: bool) -> Output:
        """The student's output for [B, V, C, H, W], image by image as in the batch.

        Args:
            strong: whether the last view is a strongly augmented one, which is a pass of its own.
        """
        images, count = views.shape[:2]
        own = self.view_statistics == "own"
        passes = [part.flatten(0, 1) for part in views.split(1 if own else count - strong, 1)]
        if own:
            with _running_statistics_kept(student):
                outputs = [student(part) for part in passes[1:]]
            outputs.insert(0, student(passes[0]))
        else:
            outputs = [student(part) for part in passes]
        if len(outputs) == 1:
            return outputs[0]
        parts = iter(zip(*(_tensors(output) for output in outputs), strict=True))
        return outputs[0].apply(
            lambda _: torch.cat([part.unflatten(0, (images, -1)) for part in next(parts)], 1).flatten(0, 1)
        )

    def images(self, batch: Batch) -> Tensor:
        return batch.views.flatten(0, 1)

    def facts(self, objective: Objective) -> dict[str, Any]:
        strong = "strong" in objective.row_sets
        return {"views": self.views_of(objective.row_sets), "strong_view": strong, "view_pool": self.view_pool}

    def observe(self, batch: Batch, output: Output, objective: Objective) -> dict[str, Tensor]:
        logits = objective.predict(output.upright(batch.views.shape[1]))
        return {"train_top1": 100 * (logits.argmax(1) == batch.labels).float().mean()}

    def cache_options(self) -> dict[str, Any]:
        named = {} if self.augment is None else {"augment": self.augment}
        return {"pool": self.view_pool, "flip": self.flip, **named}

    def random_data(self, images: int, classes: int, shape: tuple[int, int, int]) -> Data:
        pixels = torch.randint(0, 256, (images, *shape), dtype=torch.uint8)
        labels = torch.randint(0, classes, (images,))
        names = tuple(map(str, range(classes)))
        split = DataSplit(pixels, labels, names, (0.5,) * shape[0], (0.25,) * shape[0], name="random images")
        return Data(split, split, "random images")

    def contract_checks(
        self, networks: Sequence[str], dataset: str | None, data: Data, *, root: str | None
    ) -> list[tuple[str, Callable[[], None]]]:
        from pckd import testing

        channels, height, width = data.image_shape

        def check(name: str) -> None:
            made = self.make_network(name, data)
            plain = isinstance(made, Adapted)
            # A plain module is held to the contract as it is adapted; one without a classifier cannot keep it.
            if not plain or made.classifier_path:
                shown = made if plain else name
                size = size_taken(made, data.image_shape) or (height, width)
                testing.check_backbone(shown, in_channels=(channels,), image_sizes=(size,))

        checks: list[tuple[str, Callable[[], None]]] = [(f"backbone {name}", partial(check, name)) for name in networks]
        if dataset is not None:
            test = data.measured_on == "test"
            checks.append((f"data set {dataset}", partial(testing.check_dataset, dataset, root=root, test=test)))
        return checks

    def difficulty_report(self, data: Data, device: Device) -> Any:
        from pckd.engine.difficulty_report import DifficultyReport

        return DifficultyReport(data.train, data.test, device)

    def evaluate(self, network: nn.Module, loader: Any, device: Device) -> dict[str, float]:
        top1, top5, loss, _ = self.scores(network, loader, device)
        return {"top1": top1, "top5": top5, "test_loss": loss}

    @torch.no_grad()
    def scores(self, network: nn.Module, loader: Any, device: Device) -> Scores:
        """Top-1 and top-5 accuracy in percent, and the mean cross entropy.

        With fewer than five classes, top-5 counts as many as there are.

        Raises:
            UserError: an image cannot be read, or, where such images are skipped, none can.
        """
        totals = torch.zeros(3, dtype=torch.float64, device=device.target)
        samples = 0
        for output, batch in answers(network, loader, device):
            logits = output.logits.float()
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == batch.labels[:, None]
            loss = F.cross_entropy(logits, batch.labels, reduction="sum")
            totals += torch.stack([ranked[:, 0].sum().double(), ranked.sum().double(), loss.double()])
            samples += len(batch.labels)
        # Each process has measured its share.
        *sums, counted = add_up(torch.cat([totals, totals.new_tensor([samples])])).tolist()
        if not counted:
            raise UserError(f"{loader.split.name or 'the data set'}: none of its images can be read")
        top1, top5, loss_sum = sums
        return Scores(100 * top1 / counted, 100 * top5 / counted, loss_sum / counted, int(counted))


@torch.no_grad()
def answers(network: nn.Module, loader: Loader, device: Device) -> Iterator[tuple[Output, Batch]]:
    """The network's output for each batch of a loader, without gradient and in eval mode; its mode is restored."""
    with evaluating(network):
        for batch in loader.epoch(1):
            with device.autocast():
                output = network(batch.views.flatten(0, 1))
            yield output, batch
    loader.say_bad()


def _has_logits(setup: Setup) -> bool:
    """Whether the teacher has logits: one that has none has an embedding and no classifier."""
    layer: Any = setup.teacher_classifier
    return setup.teacher.embedding == 0 or not isinstance(layer, Absent)


def _noise(shapes: Shapes, rows: int, role: str = "teacher") -> Output:
    """Any output of a network of these shapes; refuses, when it is looked at, what the network does not have."""

    def maps(of: Any) -> Any:
        if isinstance(of, Mapping):
            return dict(zip(of, maps(of.values()), strict=True))
        return of if isinstance(of, Absent) else tuple(torch.randn(rows, *shape, requires_grad=True) for shape in of)

    logits = torch.randn(rows, shapes.num_classes, requires_grad=True)
    embedding: Any = Absent(NO_EMBEDDING.format(f"the {role}"))
    if shapes.embedding:
        embedding = torch.randn(rows, shapes.embedding, requires_grad=True)
    return Output(logits, embedding, maps(shapes.maps), maps(shapes.preacts), layers=maps(shapes.layers))


def _tensors(output: Output) -> list[Tensor]:
    """All tensors of an output, in the order of :meth:`Output.apply`."""
    found: list[Tensor] = []
    output.apply(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


@contextlib.contextmanager
def _running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Inside, batch norms in train mode use their batch's statistics without counting them for evaluation."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    tracking = [norm for norm in norms if norm.track_running_stats]
    try:
        for norm in tracking:
            norm.track_running_stats = False
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


def check_classes(what: str, network: nn.Module, classes: Sequence[str], owner: str) -> None:
    """Refuse a network whose record has other classes than these, or the same in another order.

    Args:
        what: the network, for messages. owner: who has ``classes``, likewise.

    Raises:
        UserError: says which.
    """
    record = preprocessing_of(network)
    theirs, ours = () if record is None else record.classes, tuple(map(str, classes))
    if not theirs or theirs == ours:
        return
    if len(theirs) != len(ours):
        raise UserError(f"{what}: was trained on {len(theirs)} classes, and {owner} has {len(ours)}")
    # The name of a class may be unknown on one side.
    pairs = enumerate(zip(theirs, ours, strict=True))
    k = next((k for k, (one, other) in pairs if one and other and one != other), None)
    if k is None:
        return
    how = "the same classes in another order" if sorted(theirs) == sorted(ours) else "other classes"
    raise UserError(
        f"{what}: was trained on {how} than {owner} has: class {k} is {theirs[k]!r} there and {ours[k]!r} here; "
        "use weights and data with the same classes in the same order"
    )


def class_rows(what: str, classes: Sequence[int | str], theirs: Sequence[str], count: int, data: Data) -> list[int]:
    """The numbers of a teacher's classes, one for each class of the data.

    Args:
        what: the teacher, for messages. classes: its names or numbers. theirs: its names, where they are known.
        count: how many it has.

    Raises:
        UserError: it has no such class; or there are too few, too many, or the same twice.
    """
    if not count:
        raise UserError(f"teacher_classes: {what} has no classifier; leave it out")
    needed = data.train.num_classes
    if len(classes) != needed:
        raise UserError(
            f"teacher_classes names {len(classes)} classes, and {data.name} has {needed}; give one for each"
        )
    rows = []
    for given in classes:
        name = str(given)
        if not isinstance(given, int) and theirs.count(name) > 1:
            raise UserError(
                f"teacher_classes: {theirs.count(name)} classes of {what} are called {name!r}; give a number"
            )
        if not isinstance(given, int) and name in theirs:
            rows.append(theirs.index(name))
        elif name.isdecimal() and int(name) < count:
            rows.append(int(name))
        elif name.removeprefix("-").isdecimal() or not theirs:
            names = "" if theirs else ", whose names are not known"
            raise UserError(f"teacher_classes: {what} has classes 0 to {count - 1}{names}, and not {name!r}")
        else:
            raise UserError(f"teacher_classes: {what} has no class {name!r}{closest(name, theirs)}")
    if len(set(rows)) < len(rows):
        twice = next(classes[k] for k, row in enumerate(rows) if row in rows[:k])
        raise UserError(f"teacher_classes names {twice!r} twice; give one class for each class of {data.name}")
    return rows


def other_preprocessing(
    what: str, network: nn.Module, split: DataSplit, say: Callable[[str], None]
) -> Preprocessing | None:
    """The network's record, where its images were normalized in another way than a split says; None otherwise.

    Args:
        what: the network, for messages. say: told so.

    Raises:
        UserError: the network was trained on other classes, or on images with another number of channels.
    """
    record = preprocessing_of(network)
    if record is None:
        return None
    data, name = preprocessing_for(split), split.name or "the data set"
    check_classes(what, network, data.classes, name)
    if not record.mean:
        return None
    if len(record.mean) != len(data.mean):
        raise UserError(
            f"{what}: was trained on images with {len(record.mean)} channels, and those of {name} have {len(data.mean)}"
        )
    if record.normalizes_as(data.mean, data.std):
        return None
    say(
        f"{what}: is shown images normalized as in its own training (mean {_numbers(record.mean)}, std "
        f"{_numbers(record.std)}), not as {name} says (mean {_numbers(data.mean)}, std {_numbers(data.std)})"
    )
    return record


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def check_layout(network: nn.Module, image_shape: tuple[int, int, int], role: str) -> None:
    """Refuse a network that cannot run in the memory format that convolutions are fastest in.

    Args:
        image_shape: (C, H, W).

    Raises:
        UserError: names the line, and what to write instead.
    """
    weight = next(network.parameters(), torch.empty(0))
    images = torch.zeros(2, *image_shape, device=weight.device)
    try:
        with evaluating(network), torch.no_grad():
            network(images.contiguous(memory_format=torch.channels_last))
    except Exception as error:
        reason, where = " ".join(str(error).split())[:200], place_of(error)
        raise UserError(
            f"{role} cannot run on images in channels_last memory format: {reason}{where and f' ({where})'}; "
            "in its forward, write .reshape or .flatten(1) instead of .view"
        ) from error
