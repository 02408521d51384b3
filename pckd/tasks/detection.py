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

from model_zoo.detection import Detector, Regions
from model_zoo.probe import evaluating
from pckd.data.annotated import AnnotatedBatch
from pckd.data.load import Data
from pckd.device import Device
from pckd.objective import says
from pckd.ops import constant
from pckd.tasks.average_precision import DetectionScores, detection_scores
from pckd.tasks.dense import NO_LABELS, DenseTask
from pckd.tasks.task import Teacher
from registry import TASKS, Boxes, Instances, NotApplicable, Output, Setup, Shapes, Term, UserError

__all__ = ["Detection"]


@TASKS.register("detection")
class Detection(DenseTask):
    """Where in an image are objects of K classes: judged by COCO's mean average precision in percent.

    A step's rows are the regions that the student samples; ``"foreground"`` show an object, which ``index`` names.
    Difficulty is judged of every region. The options are those of :class:`pckd.tasks.dense.DenseTask`.
    """

    name = "detection"
    metric = "map"
    columns = ("ap50", "ap75")
    titles = MappingProxyType({"map": "mAP", "ap50": "AP50", "ap75": "AP75"})
    knows = ("boxes",)
    network_kind = Detector
    example = "faster_rcnn_r10w16 or torchvision:fasterrcnn_resnet50_fpn"
    pictures = ("detections", "precision_recall")
    demonstration = MappingProxyType(
        {
            "data": "scenes(occlusion=0)",
            "epochs": 6,
            "teacher_epochs": 6,
            "batch_size": 8,
            "lr": 0.03,
            "teacher_lr": 0.03,
            "schedule": "cosine(warmup=0.8)",
            "clip_grad": 5.0,
        }
    )

    def check(self, data: Data, terms: Sequence[Term]) -> None:
        super().check(data, terms)
        if not data.train.annotations:
            raise UserError(f"{data.name} has no boxes, which detection learns from; use another data set")

    def terms(self, terms: Sequence[Term]) -> list[Term]:
        placed = super().terms(terms)
        return [replace(t, rows="foreground") if says(t, "needs_index", False) else t for t in placed]

    def classifies(self, student: nn.Module) -> bool:
        return self.own(student, "the student").classifies

    def check_pair(self, student: nn.Module, teacher: nn.Module, data: Data) -> None:
        one, other = self.own(student, "the student"), self.own(teacher, "the teacher")
        if one.kind != other.kind:
            raise NotApplicable(
                f"student and teacher look at other regions ({one.kind} and {other.kind}): use two networks of one kind"
            )
        # Where it cannot, its answer says so.
        images = torch.zeros(1, 3, *data.train.image_size)
        with evaluating(one), evaluating(other), torch.no_grad():
            regions = one.everywhere(images.to(next(one.parameters()).device))
            other.answer(images.to(next(other.parameters()).device), regions)

    def shapes_of(self, network: Detector, images: Tensor) -> Shapes:
        return Shapes.of(network.answer(images, network.everywhere(images)))

    def setup(self, student: Shapes, teacher: Shapes, data: Data, classifier: nn.Linear | None) -> Setup:
        rows = super().setup(student, teacher, data, classifier)
        # What lasts of a region is the true object that it shows.
        objects = rows._replace(num_samples=int(data.train.first_object[-1]), stable_index=True)
        return rows._replace(sets={**dict(rows.sets), "foreground": objects})

    def pair(
        self, batch: AnnotatedBatch, student: nn.Module, teachers: Sequence[Teacher]
    ) -> tuple[Output, list[Output], Instances]:
        targets = [{"boxes": boxes, "labels": labels} for boxes, labels in zip(batch.boxes, batch.labels, strict=True)]
        with record_function("pckd.student"):
            regions, output = student.study(batch.images, targets, batch.seeds)  # type: ignore[operator]
        answers = []
        for teacher in teachers:
            detector = self.own(teacher.network, "the teacher")
            with record_function("pckd.teacher"), torch.no_grad():
                answers.append(detector.answer(batch.images, regions).detach())
        return output, answers, self._instances(batch, regions)

    def _instances(self, batch: AnnotatedBatch, regions: Regions) -> Instances:
        labels, device = regions.labels, regions.labels.device
        # Counted on the CPU, so that an accelerator is not asked.
        counts = torch.tensor([len(objects) for objects in batch.objects])
        first = (counts.cumsum(0) - counts).to(device, non_blocking=True)
        image = torch.arange(len(batch)).repeat_interleave(counts).to(device, non_blocking=True)
        objects = torch.cat([*batch.objects, torch.full((1,), -1, device=device)])
        foreground = labels > 0
        index = torch.where(foreground, objects[torch.where(foreground, first[regions.image] + regions.match, -1)], -1)
        height, width = batch.images.shape[2:]
        extent = constant([width, height, width, height], batch.images)
        images = Instances(
            labels=NO_LABELS,  # type: ignore[arg-type]
            index=batch.index,
            boxes=Boxes(torch.cat(batch.boxes) / extent, torch.cat(batch.labels), image),
            locations=regions.locations,
        )
        return Instances(
            labels,
            index,
            regions.image,
            sets=self.sets(labels, batch.seeds),
            # Background is easy: among all rows it would push every object's weight down.
            group=foreground.long(),
            images=images,
            uneven=True,
        )

    def scores(self, network: nn.Module, loader: Any, device: Device) -> DetectionScores:
        return detection_scores(self.own(network, "the network"), loader, device)
