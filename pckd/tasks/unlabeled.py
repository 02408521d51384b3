"""Images without labels: a student learns from what its teacher makes of them, and is measured by whatever there is.

Shapes: M test images, T neighbors, D embedding width, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo import Preprocessing, preprocessing_of, probe, read_metadata
from model_zoo.checkpoints import classes_in
from pckd.data import Loader
from pckd.data.check import check_item
from pckd.data.load import Data
from pckd.device import Device
from pckd.distributed import add_up
from pckd.objective import Objective, is_shared
from pckd.tasks.classification import Classification, answers
from registry import TASKS, Absent, DataSplit, Instances, NotApplicable, Term, UserError

__all__ = ["Unlabeled", "nearest", "vote"]

NO_LABELS: Any = Absent("the images have no labels; use what looks at none, such as the methods kd, at and rkd")
NEIGHBORS, TEMPERATURE = 20, 0.07
"""Of the k-NN classifier of DINO (Caron et al. 2021, arXiv 2104.14294, appendix F.1)."""
MUTUAL = 10
"""Neighbors of which two networks share some."""
PIECE = 1024
"""Images that are compared with all others at a time."""


def vote(embedding: Tensor, known: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The class [M] of the k nearest neighbors by cosine, each of which votes with exp(cosine / temperature).

    Args:
        embedding: [M, D]. known: [T, D], the neighbors' embeddings. labels: [T], theirs.
    """
    cosine = F.normalize(embedding.float()) @ F.normalize(known.float()).T
    closest = cosine.topk(min(NEIGHBORS, len(known)))
    votes = cosine.new_zeros(len(embedding), classes)
    return votes.scatter_add_(1, labels[closest.indices], (closest.values / TEMPERATURE).exp()).argmax(1)


def nearest(embedding: Tensor, k: int = MUTUAL) -> Tensor:
    """[M, k] which images are nearest to each by cosine, itself left out; fewer where there are no more."""
    unit = F.normalize(embedding.float())
    found = []
    for first in range(0, len(unit), PIECE):
        cosine = unit[first : first + PIECE] @ unit.T
        cosine[torch.arange(len(cosine)), torch.arange(first, first + len(cosine))] = -torch.inf
        found.append(cosine.topk(min(k, len(unit) - 1)).indices)
    return torch.cat(found)


@TASKS.register("unlabeled")
class Unlabeled(Classification):
    """Images without labels, or whose labels are not looked at; a loss, metric or center rule that does is refused.

    The cross entropy that a method adds to its own terms is left out. The student has the teacher's classes. It is
    judged by the first of these that there is:

    - ``top1``: the test images have labels of the teacher's classes, and a term trains the student's classifier;
    - ``knn``: they have labels of any classes, and ``neighbors``: accuracy of a weighted 20-nearest-neighbor vote among
      the embeddings of these;
    - ``agreement``: share of the test images that student and teacher put in the same class;
    - ``mutual_knn``: share of the 10 test images nearest to each in the teacher's embedding that are also among the 10
      nearest in the student's (Huh et al. 2024, arXiv 2405.07987), where the teacher, or the method, has no classes.

    Its options are those of classification.
    """

    name = "unlabeled"
    metric = "agreement"
    other_metrics = ("knn", "mutual_knn")
    columns: tuple[str, ...] = ()
    titles = MappingProxyType({**Classification.titles, "knn": "k-NN top-1", "mutual_knn": "shared neighbors"})
    labeled = False
    _left_out = _answering = False
    """Whether a cross entropy was left out; whether a term trains what the student answers with."""
    _theirs: Tensor
    """What the teacher said of the test images: classes [M], or neighbors [M, k]."""
    _neighbors: Loader | None = None

    def chance(self, data: Data) -> float:
        return 100 / data.test.num_classes if self.metric in ("top1", "knn") else 0.0

    def check(self, data: Any, terms: Sequence[Term]) -> None:
        super().check(data, terms)
        if self.balance != "none":
            raise UserError(
                f"balance={self.balance} looks at labels, and the task unlabeled looks at none; leave it out"
            )

    def terms(self, terms: Sequence[Term]) -> list[Term]:
        kept = [term for term in terms if not is_shared(term)]
        self._left_out = len(kept) < len(terms)
        if not any(term.main and term.weight for term in kept):
            raise NotApplicable(
                f"without labels there is nothing to learn by {', '.join(term.label for term in terms)} alone; use "
                "another method, such as kd, at or rkd, or several, such as kd+fsp"
            )
        return kept

    def make_network(
        self,
        network: str | nn.Module,
        data: Data,
        role: str = "a network",
        *,
        num_classes: int | Literal["own"] | None = None,
    ) -> nn.Module:
        # Of one class, until the teacher says how many there are.
        named = data if data.train.num_classes else _named(data, ("",))
        return super().make_network(network, named, role, num_classes=num_classes)

    def settled(
        self,
        data: Data,
        student: str | nn.Module,
        teachers: Sequence[str | nn.Module],
        weights: Sequence[str | os.PathLike[str] | None],
    ) -> tuple[Data, list[str]]:
        if not data.train.classes:
            known = [self._classes_of(*one, data) for one in zip(teachers, weights, strict=True)]
            classes = next((names for names in known if names), ())
            if data.test.labeled and not any(classes) and len(classes) == len(data.test.classes):
                classes = data.test.classes
            data = _named(data, classes or ("",) * (1 if isinstance(student, str) else self._columns(student, data)))
        train, test = data.train, data.test
        if train.labeled and test.neighbors is None and check_item(train) == check_item(test):
            images = train.images.evaluation() if hasattr(train.images, "evaluation") else train.images
            neighbors = replace(train, images=images, mean=test.mean, std=test.std)
            data = replace(data, test=replace(test, neighbors=neighbors))
        note = "no label is looked at, so that the method's cross entropy with the labels is left out"
        return data, [f"{data.name}: {note}"] if self._left_out else []

    def _classes_of(
        self, teacher: str | nn.Module, weights: str | os.PathLike[str] | None, data: Data
    ) -> tuple[str, ...]:
        """The teacher's, each ``""`` where their names are not known; none where it gives no logits."""
        if isinstance(teacher, str) and weights is None:
            self.check_teachable(teacher, data)
        network = self.make_network(teacher, data, "the teacher") if isinstance(teacher, str) else teacher
        columns = self._columns(network, data)
        if not columns:
            return ()
        record = preprocessing_of(network)
        if isinstance(teacher, str) and weights is not None:
            record, columns = Preprocessing.from_metadata(read_metadata(weights)), classes_in(weights, network)
        if columns < 2:
            raise UserError(
                f"the teacher {'says nothing of its classes' if not columns else 'has one class'}: give one that tells "
                "classes apart, or none: pckd.adapt(module, classifier=False)"
            )
        return record.classes if record is not None and len(record.classes) == columns else ("",) * columns

    def _columns(self, network: nn.Module, data: Data) -> int:
        """Of a network's logits; 0 where it gives none."""
        layer = getattr(network, "classifier", None)
        if isinstance(layer, nn.Linear):
            return layer.out_features
        if not getattr(network, "gives_logits", True):
            return 0
        channels, height, width = data.image_shape
        resizing = self.resizing("the teacher", network, data.train)
        return probe(network, channels, resizing[0] if resizing else (height, width)).num_classes

    def check_teachable(self, teacher: str, data: Data) -> None:
        raise UserError(
            f"teacher {teacher!r} cannot be trained first, because no label is looked at; give the file of its weights "
            "(teacher_weights, --teacher-weights), or a trained module"
        )

    def shown(self, instances: Instances) -> Instances:
        return replace(instances, labels=NO_LABELS)

    def check_batch(self, student: nn.Module, data: Data, images: int, objective: Objective) -> None:
        super().check_batch(student, data, images, objective)
        setup, test, judged = objective.setup, data.test, objective.needs_teacher
        embeds = setup.student.embedding > 0
        logits = self._answering and not (setup.teacher.embedding and isinstance(setup.teacher_classifier, Absent))
        if test.labeled and logits and test.classes == data.train.classes:
            self.metric = "top1"
        elif test.neighbors is not None and embeds:
            self.metric = "knn"
        elif logits and judged:
            self.metric = "agreement"
        elif embeds and judged and setup.teacher.embedding:
            self.metric = "mutual_knn"
        else:
            raise NotApplicable(
                f"{data.name}: there is nothing to measure the student by; give labeled test images and their "
                "neighbors, or a method that looks at both networks' logits, and networks with an embedding"
            )
        self.columns = ("top5",) if self.metric == "top1" else ()

    def _check_reads(self, objective: Objective, images: int, split: DataSplit) -> bool:
        self._answering = super()._check_reads(objective, images, split)
        return self._answering

    def preprocessing(self, data: Data) -> Preprocessing:
        record = super().preprocessing(data)
        return record if self._answering else replace(record, classes=())

    def loader(
        self, split: Any, batch_size: int, *, train: bool, objective: Objective | None, **options: Any
    ) -> Loader:
        alone = {**options, "rank": 0, "world_size": 1}
        if not train and self.metric == "knn" and split.neighbors is not None:
            self._neighbors = super().loader(split.neighbors, batch_size, train=False, objective=None, **alone)
        if not train and self.metric == "mutual_knn":
            # Each process compares all images with one another.
            options = alone
        return super().loader(split, batch_size, train=train, objective=objective, **options)

    def observe(self, batch: Any, output: Any, objective: Objective) -> dict[str, Tensor]:
        return {}

    def difficulty_report(self, data: Data, device: Device) -> Any:
        raise UserError("report_difficulty asks metrics that look at labels, and none are looked at; leave it out")

    def measure_teacher(self, teacher: Any, loader: Any, device: Device, say: Callable[[str], None]) -> float | None:
        one_of_several = getattr(teacher, "position", None) is not None
        if not self._answering and not one_of_several:
            say("no term trains the student's classifier: what it has learned is its embedding")
        if self.metric == "top1":
            return super().measure_teacher(teacher, loader, device, say)
        if self.metric == "knn":
            network = getattr(teacher, "network", teacher)
            if isinstance(teacher.classifier, Absent) and getattr(network, "gives_logits", True):
                say("not measured, because it has no embedding")
                return None
            return self.evaluate(teacher, loader, device)["knn"]
        if one_of_several:
            return None
        say("the student is measured by it")
        if self.metric == "agreement":
            self._theirs = torch.zeros(len(loader.split), dtype=torch.int64, device=device.target)
            for output, batch in answers(teacher, loader, device):
                self._theirs[batch.index] = output.logits.argmax(1)
        else:
            self._theirs = nearest(_embeddings(teacher, loader, device)[0])
        return None

    @torch.no_grad()
    def evaluate(self, network: nn.Module, loader: Any, device: Device) -> dict[str, float]:
        if self.metric == "top1":
            return super().evaluate(network, loader, device)
        if self.metric == "mutual_knn":
            own = nearest(_embeddings(network, loader, device)[0])
            shared = (own[:, :, None] == self._theirs[:, None]).any(2)
            return {"mutual_knn": 100 * float(shared.double().mean())}
        if self._neighbors is not None:
            known = _embeddings(network, self._neighbors, device)
        # How many are right, and how many there are; each process has measured its share.
        counts = torch.zeros(2, dtype=torch.float64, device=device.target)
        for output, batch in answers(network, loader, device):
            if self.metric == "knn":
                right = vote(output.embedding, *known, loader.split.num_classes) == batch.labels
            else:
                right = output.logits.argmax(1) == self._theirs[batch.index]
            counts += torch.stack([right.sum(), torch.ones_like(right).sum()])
        right_ones, counted = add_up(counts).tolist()
        if not counted:
            raise UserError(f"{loader.split.name or 'the data set'}: none of its images can be read")
        return {self.metric: 100 * right_ones / counted}


def _named(data: Data, classes: tuple[str, ...]) -> Data:
    """The same data; what has no labels has these classes."""
    train, test = (s if s.labeled else replace(s, classes=classes) for s in (data.train, data.test))
    return replace(data, train=train, test=test)


def _embeddings(network: nn.Module, loader: Any, device: Device) -> tuple[Tensor, Tensor]:
    """[M, D] of all images of a loader, and their labels [M]."""
    found = [(output.embedding.float(), batch.labels) for output, batch in answers(network, loader, device)]
    embeddings, labels = zip(*found, strict=True)
    return torch.cat(embeddings), torch.cat(labels)
