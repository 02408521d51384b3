"""Segmentation: a row is a sampled pixel, at the resolution of the student's last convolution.

Shapes: B images, N rows (pixels of all images), K classes of objects; class 0 is the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from model_zoo.segmentation import Segmenter
from pckd.data.annotated import AnnotatedBatch
from pckd.device import Device
from pckd.tasks.dense import NO_LABELS, DenseTask
from pckd.tasks.segmentation_scores import SegmentationScores, segmentation_scores
from pckd.tasks.task import Teacher
from registry import TASKS, Instances, Output, Shapes, Term, UserError

__all__ = ["Segmentation"]

IGNORED = -1
AUXILIARY = 0.5
"""Weight of the auxiliary head's loss in torchvision's training script."""


@TASKS.register("segmentation")
class Segmentation(DenseTask):
    """Which of K classes, or the background, does each pixel show: judged by the mean intersection over union.

    A step's rows are pixels of the student's features, drawn by the seed of each image: ``"upright"`` are all that are
    drawn, ``"all"`` and ``"foreground"`` (pixels of objects) at most ``max_rows`` of them, and ``"images"`` the images
    with two maps, features and logits. The network's own loss, the cross entropy of all pixels at the images' size,
    stands for a method's cross entropy of rows.

    Args:
        pixels: how many pixels a step draws. balanced: as many of each class that an image shows, as far as it has
            them.
        max_rows, flip: as for detection.
    """

    name = "segmentation"
    metric = "miou"
    columns = ("pixel_accuracy",)
    titles = MappingProxyType({"miou": "mIoU"})
    knows = ("pixels",)
    network_kind = Segmenter
    example = "fcn_r10w16 or torchvision:deeplabv3_resnet50"
    pictures = ("segments",)
    demonstration = MappingProxyType(
        {
            "data": "scenes(num_classes=5, occlusion=0, smallest=0.14, largest=0.3, noise=0.04, contrast=0.7)",
            "epochs": 8,
            "teacher_epochs": 8,
            "batch_size": 8,
            "lr": 0.1,
            "teacher_lr": 0.1,
            "schedule": "cosine(warmup=0.8)",
            "clip_grad": 5.0,
        }
    )

    def __init__(self, *, pixels: int = 4096, balanced: bool = False, max_rows: int = 512, flip: bool = True) -> None:
        super().__init__(max_rows=max_rows, flip=flip)
        if pixels < 2:
            raise UserError(f"pixels must be 2 or more, not {pixels}")
        self.pixels, self.balanced = pixels, balanced

    def check(self, data: Any, terms: Sequence[Term]) -> None:
        super().check(data, terms)
        if data.train.masks is None or data.test.masks is None:
            raise UserError(f"{data.name} has no masks, which segmentation learns from; use another data set")

    def classifies(self, student: nn.Module) -> bool:
        return True

    def shapes_of(self, network: Segmenter, images: Tensor) -> Shapes:
        whole = network(images)
        classes, width = (int(whole.maps[position].shape[1]) for position in (1, 0))
        return Shapes(classes, width, images=Shapes(classes, 0, tuple(tuple(m.shape[1:]) for m in whole.maps)))

    def pair(
        self, batch: AnnotatedBatch, student: nn.Module, teachers: Sequence[Teacher]
    ) -> tuple[Output, list[Output], Instances]:
        assert batch.masks is not None
        with record_function("pckd.student"):
            whole, answers = student.study(batch.images)  # type: ignore[operator]
        losses = {name: F.cross_entropy(x.float(), batch.masks, ignore_index=IGNORED) for name, x in answers.items()}
        if "aux" in losses:
            losses["aux"] = AUXILIARY * losses["aux"]
        instances, y, x = self._drawn(batch, whole.maps[0].shape[2:])
        output = _at(whole, instances.image, y, x)._replace(losses=losses)
        others = []
        for teacher in teachers:
            with record_function("pckd.teacher"), torch.no_grad():
                maps = self.own(teacher.network, "the teacher")(batch.images)
                others.append(_at(maps, instances.image, y, x).detach())
        return output, others, instances

    def _drawn(self, batch: AnnotatedBatch, size: Sequence[int]) -> tuple[Instances, Tensor, Tensor]:
        """The rows of a step, and where they are, in shares of height and width, [N] each."""
        assert batch.masks is not None
        # The class at the center of each cell of the features.
        classes = F.interpolate(batch.masks[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].long()
        each = max(1, self.pixels // len(batch))
        places = [
            self._some(of_image.flatten(), each, seed) for of_image, seed in zip(classes, batch.seeds, strict=True)
        ]
        image = torch.cat([torch.full_like(place, position) for position, place in enumerate(places)])
        place = torch.cat(places)
        labels = classes.flatten(1)[image, place]
        sets = self.sets(labels, batch.seeds)
        images = Instances(labels=NO_LABELS, index=batch.index, pixels=batch.masks)  # type: ignore[arg-type]
        instances = Instances(labels, image=image, sets=sets, images=images, uneven=True)
        return instances, (place // size[1] + 0.5) / size[0], (place % size[1] + 0.5) / size[1]

    def _some(self, classes: Tensor, count: int, seed: int) -> Tensor:
        """Which cells of an image are drawn."""
        generator = torch.Generator().manual_seed(seed)
        known = (classes >= 0).nonzero()[:, 0]
        known = known[torch.randperm(len(known), generator=generator).to(known.device)]
        if self.balanced and len(known) > count:
            # In their drawn order, by how many of the same class come before them.
            same = F.one_hot(classes[known]).cumsum(0).gather(1, classes[known][:, None])[:, 0]
            known = known[same.sort(stable=True).indices]
        return known[:count].sort().values

    def scores(self, network: nn.Module, loader: Any, device: Device) -> SegmentationScores:
        return segmentation_scores(self.own(network, "the network"), loader, device)


def _at(whole: Output, image: Tensor, y: Tensor, x: Tensor) -> Output:
    """The pixels of an output's maps at these places, given in shares of height and width, as rows."""
    rows = []
    for found in whole.maps[::-1]:
        height, width = found.shape[2:]
        rows.append(found[image, :, (y * height).long(), (x * width).long()])
    return Output(rows[0], rows[1], images=whole)
