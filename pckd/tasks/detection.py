"""Detection: a row is a region that the student has sampled, and both networks answer about the same ones.

Shapes: B images, N rows (regions of all images), K classes of objects; label 0 is the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from model_zoo import Preprocessing
from model_zoo.detection import Detector, Regions
from model_zoo.probe import evaluating
from pckd.data.annotated import AnnotatedBatch, AnnotatedLoader, AnnotatedSplit
from pckd.data.load import Data
from pckd.device import Device
from pckd.objective import Objective, says
from pckd.tasks.average_precision import DetectionScores, detection_scores
from pckd.tasks.classification import check_classes
from pckd.tasks.task import Task, Teacher
from registry import TASKS, Absent, Boxes, Instances, NotApplicable, Output, Rows, Setup, Shapes, Term, UserError

__all__ = ["NO_LABELS", "Detection", "dense_terms", "drawn", "wants"]

NO_LABELS = Absent("the rows 'images' have no labels of their own: use rows='upright' or 'foreground'")


def dense_terms(terms: Sequence[Term]) -> list[Term]:
    """A method's terms where a row is a part of an image: each on the rows that it can look at.

    Losses that read feature maps alone are shown those of the images. There are no rotated or strong views.
    """
    placed = []
    for term in terms:
        rows = "upright" if term.rows == "strong" else term.rows
        if rows in ("upright", "all") and says(term, "reads_maps") and not says(term, "reads_rows", False):
            rows = "images"
        placed.append(replace(term, rows=rows))
    return placed


def drawn(count: int, most: int, seeds: Sequence[int]) -> Tensor | None:
    """[most], int64: which of ``count`` rows are taken where these are too many, drawn by the seeds; else None."""
    if count <= most:
        return None
    generator = torch.Generator().manual_seed(sum(seeds) % 2**63)
    return torch.randperm(count, generator=generator)[:most].sort().values


def wants(network: nn.Module, kind: type[nn.Module], role: str) -> Any:
    """The network of this kind that a teacher, a predictor, ... holds, or that was given itself.

    Raises:
        UserError: there is none.
    """
    found: Any = network
    while not isinstance(found, kind):
        if not isinstance(found := getattr(found, "network", None), nn.Module):
            raise UserError(
                f"{role} must be a {kind.__name__} (model_zoo), as faster_rcnn_r10w16 or "
                f"torchvision:fasterrcnn_resnet50_fpn, not {type(network).__name__}"
            )
    return found


@TASKS.register("detection")
class Detection(Task):
    """Where in an image are objects of K classes: judged by COCO's mean average precision in percent.

    A step's rows are the regions that the student samples. ``"upright"`` are all of them, ``"all"`` and
    ``"foreground"`` (the regions that show an object) at most ``max_rows``, and ``"images"`` the images with the
    feature maps of the pyramid. Difficulty is judged of every region. The network's own losses are terms of every
    method.

    Args:
        max_rows: how many regions a step shows to losses that compare rows with one another.
        flip: random horizontal flips in training.
    """

    name = "detection"
    metric = "map"
    columns = ("ap50", "ap75")
    rows = ("upright", "all", "foreground", "images")
    knows = ("boxes",)
    demonstration = MappingProxyType({"data": "scenes", "epochs": 6, "teacher_epochs": 6, "batch_size": 8})

    def __init__(self, *, max_rows: int = 512, flip: bool = True) -> None:
        if max_rows < 2:
            raise UserError(f"max_rows must be 2 or more, not {max_rows}")
        self.max_rows, self.flip = max_rows, flip

    @property
    def title(self) -> str:
        return "mAP"

    def terms(self, terms: Sequence[Term]) -> list[Term]:
        placed = [
            replace(term, rows="foreground") if says(term, "needs_index", False) else term
            for term in dense_terms(terms)
        ]
        own = any(term.loss == "network_losses" for term in placed)
        return placed if own else [*placed, Term("network_losses", 1.0)]

    def terms_for(self, student: nn.Module, terms: Sequence[Term]) -> list[Term]:
        if not wants(student, Detector, "the student").classifies:
            return list(terms)
        # Its own losses are about every location, and this one would be about the sampled ones once more.
        return [term for term in terms if term.loss != "cross_entropy"]

    def preprocessing(self, data: Data) -> Preprocessing:
        # Networks are shown images in [0, 1] and normalize them by themselves.
        split = data.train
        return Preprocessing((0.0,) * 3, (1.0,) * 3, split.image_size, tuple(split.classes))

    def check_classes(self, what: str, network: nn.Module, data: Data) -> None:
        check_classes(what, network, data.train.classes, data.name)

    def shapes(self, network: nn.Module, data: Data, role: str) -> Shapes:
        detector = wants(network, Detector, f"the {role}")
        height, width = data.train.image_size
        weight = next(detector.parameters())
        images = torch.zeros(2, 3, height, width, device=weight.device)
        with evaluating(detector), torch.no_grad():
            shapes = Shapes.of(detector.answer(images, detector.everywhere(images)))
        if shapes.num_classes != data.train.num_classes + 1:
            raise UserError(
                f"the {role} has {shapes.num_classes - 1} classes, the data set {data.name} {data.train.num_classes}: "
                "they must be the same"
            )
        return shapes

    def setup(self, student: Shapes, teacher: Shapes, data: Data, classifier: nn.Linear | None) -> Setup:
        rows = super().setup(student, teacher, data, classifier)
        # What lasts of a region is the true object that it shows.
        objects = rows._replace(num_samples=int(data.train.first_object[-1]), stable_index=True)
        return rows._replace(sets={**rows.sets, "foreground": objects})

    def loader(
        self, split: AnnotatedSplit, batch_size: int, *, train: bool, objective: Objective | None, **options: Any
    ) -> AnnotatedLoader:
        augment = split.augment._replace(flip=self.flip and split.augment.flip)
        return AnnotatedLoader(split, batch_size, train=train, augment=augment, **options)

    def pair(
        self, batch: AnnotatedBatch, student: nn.Module, teachers: Sequence[Teacher]
    ) -> tuple[Output, list[Output], Instances]:
        targets = [{"boxes": boxes, "labels": labels} for boxes, labels in zip(batch.boxes, batch.labels, strict=True)]
        with record_function("pckd.student"):
            regions, output = student.study(batch.images, targets, batch.seeds)
        answers = []
        for teacher in teachers:
            detector = wants(teacher.network, Detector, "the teacher")
            if detector.kind != student.kind:
                raise NotApplicable(
                    f"student and teacher look at other regions ({student.kind} and {detector.kind}): use two networks "
                    "of one kind"
                )
            with record_function("pckd.teacher"), torch.no_grad():
                answers.append(detector.answer(batch.images, regions).detach())
        return output, answers, self._instances(batch, regions)

    def _instances(self, batch: AnnotatedBatch, regions: Regions) -> Instances:
        labels, device = regions.labels, regions.labels.device
        counts = torch.tensor([len(objects) for objects in batch.objects], device=device)
        objects = torch.cat([*batch.objects, torch.full((1,), -1, device=device)])
        first = counts.cumsum(0) - counts
        foreground = labels > 0
        index = torch.where(foreground, objects[torch.where(foreground, first[regions.image] + regions.match, -1)], -1)
        some = drawn(len(labels), self.max_rows, batch.seeds)
        shown = foreground.nonzero()[:, 0]
        fewer = drawn(len(shown), self.max_rows, batch.seeds)
        height, width = batch.images.shape[2:]
        extent = batch.images.new_tensor([width, height, width, height])
        images = Instances(
            labels=NO_LABELS,  # type: ignore[arg-type]
            index=batch.index,
            boxes=Boxes(
                torch.cat(batch.boxes) / extent,
                torch.cat(batch.labels),
                torch.arange(len(batch), device=device).repeat_interleave(counts),
            ),
        )
        return Instances(
            labels,
            index,
            regions.image,
            sets={
                "all": Rows(slice(None) if some is None else some.to(device)),
                "foreground": Rows(shown if fewer is None else shown[fewer.to(device)]),
            },
            # Background is easy: among all rows it would push every object's weight down.
            group=foreground.long(),
            images=images,
            uneven=True,
        )

    def evaluate(self, network: nn.Module, loader: Any, device: Device) -> dict[str, float]:
        return self.scores(network, loader, device).scores

    def scores(self, network: nn.Module, loader: Any, device: Device) -> DetectionScores:
        return detection_scores(wants(network, Detector, "the network"), loader, device)
