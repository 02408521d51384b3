"""Average precision of detections as COCO defines it, counted by pycocotools (``pip install 'pckd[detection]'``).

A detection is right where it overlaps an object of its class that no better detection has taken: by an intersection
over union of 0.5 for ``ap50``, of 0.75 for ``ap75``; ``map`` is the mean over 0.5, 0.55, ... 0.95.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model_zoo.probe import evaluating
from pckd.device import Device
from pckd.distributed import gather_objects
from registry import UserError

__all__ = ["RECALLS", "AveragePrecision", "DetectionScores", "detection_scores", "require_pycocotools"]

RECALLS = np.linspace(0, 1, 101)
"""At which precision is read."""
MOST_DETECTIONS = 100
"""Of an image and a class, by their scores; what comes after them does not count."""

_AREAS = ("all", "small", "medium", "large")
"""In the order of pycocotools: of any area, below 32 * 32 pixels, up to 96 * 96, and above."""
_AT_50, _AT_75 = 0, 5
"""Where these thresholds stand among the ten."""


@dataclass(frozen=True, eq=False)
class DetectionScores:
    """How good the detections of a split are."""

    scores: dict[str, float]
    """In percent: ``map``, ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large`` (of objects of that area), and
    ``ar``, the recall of at most 100 detections an image and class, as a mean over the thresholds. An area that no
    object has is left out (COCO writes -1)."""
    by_class: dict[str, float]
    """``map`` of each class in percent; a class without objects is left out, and does not count in any mean."""
    curves: dict[str, np.ndarray]
    """Of the same classes: precision in percent at each of :data:`RECALLS`, for an overlap of 0.5. Their means are the
    classes' ``ap50``."""
    images: int
    """How many were measured."""


class AveragePrecision:
    """Collects detections and truth image by image, in pixels of one image each.

    Args:
        classes: names of the classes, without the background: that of label 1 first.
        name: of the data, for messages.

    Raises:
        UserError: pycocotools is not installed.
    """

    def __init__(self, classes: Sequence[str], name: str = "") -> None:
        require_pycocotools()
        self.classes, self.name = tuple(classes), name
        self._found: dict[int, np.ndarray] = {}
        self._true: dict[int, np.ndarray] = {}

    def add(
        self,
        image: int,
        detections: Mapping[str, Tensor],
        boxes: Tensor,
        labels: Tensor,
        crowd: Tensor | None = None,
        area: Tensor | None = None,
    ) -> None:
        """Take in an image; one that has been taken in already is replaced.

        Args:
            image: its position in the split. By it images are ordered, so that neither the order in which they come nor
                the process that measures them changes a score.
            detections: ``boxes`` [m, 4] (left, top, right, bottom), ``labels`` [m], 1 to K, and ``scores`` [m].
            boxes, labels: of the true objects, [n, 4] and [n].
            crowd: [n], whether a box holds a crowd: detections in it are neither right nor wrong, and it is not missed.
            area: [n], of the objects; by default of their boxes.
        """
        self._found[image] = _table(detections["boxes"], detections["labels"], detections["scores"])
        corner = boxes.double()
        sides = corner[:, 2:] - corner[:, :2]
        crowd = torch.zeros_like(labels) if crowd is None else crowd
        self._true[image] = _table(boxes, labels, sides.prod(1) if area is None else area, crowd)

    def result(self) -> DetectionScores:
        """The scores of the images of all processes, the same in each.

        Raises:
            UserError: no image has an object, so that there is nothing to find.
        """
        found: dict[int, np.ndarray] = {}
        true: dict[int, np.ndarray] = {}
        for own_found, own_true in gather_objects((self._found, self._true)):
            found.update(own_found)
            true.update(own_true)
        if not any((rows[:, 6] == 0).any() for rows in true.values()):
            raise UserError(
                f"{self.name or 'the data set'}: none of the {len(true)} images measured has an object to find, and "
                "average precision is not defined; measure on more images"
            )
        return self._scores(*_accumulated(found, true, range(1, len(self.classes) + 1)), images=len(true))

    def _scores(self, precision: np.ndarray, recall: np.ndarray, images: int) -> DetectionScores:
        """From pycocotools' numbers of all thresholds [10], recalls [101], classes [K] and areas [4]."""
        means = {
            "map": _mean(precision[..., 0]),
            "ap50": _mean(precision[_AT_50, ..., 0]),
            "ap75": _mean(precision[_AT_75, ..., 0]),
            **{f"ap_{area}": _mean(precision[..., a]) for a, area in enumerate(_AREAS) if a},
            "ar": _mean(recall[..., 0]),
        }
        classes = {name: _mean(precision[:, :, k, 0]) for k, name in enumerate(self.classes)}
        return DetectionScores(
            scores={name: value for name, value in means.items() if value is not None},
            by_class={name: value for name, value in classes.items() if value is not None},
            curves={
                name: 100 * precision[_AT_50, :, k, 0]
                for k, name in enumerate(self.classes)
                if classes[name] is not None
            },
            images=images,
        )


@torch.no_grad()
def detection_scores(network: nn.Module, loader: Any, device: Device) -> DetectionScores:
    """Measure ``network.detect`` on the images of a loader, in the pixels of the images as they were read.

    In eval mode and without gradient. Each process measures its share; the scores are those of all.

    Args:
        loader: of a :class:`pckd.data.annotated.AnnotatedSplit`, not for training.

    Raises:
        UserError: pycocotools is not installed, or no image has an object.
    """
    split = loader.split
    measured = AveragePrecision(split.classes, split.name)
    with evaluating(network):
        for batch in loader.epoch(1):
            with device.autocast():
                detections: Any = network.detect(batch.images)  # type: ignore[operator]
            for image, scale, found in zip(batch.index.tolist(), batch.scale.double().cpu(), detections, strict=True):
                truth = split.annotations[image]
                found = {**found, "boxes": found["boxes"].cpu() / scale}
                measured.add(image, found, truth.boxes, truth.labels, truth.crowd, truth.area)
    loader.say_bad()
    return measured.result()


def require_pycocotools() -> Any:
    """The modules ``pycocotools.coco`` and ``pycocotools.cocoeval``.

    Raises:
        UserError: pycocotools is not installed.
    """
    try:
        from pycocotools import coco, cocoeval
    except ImportError:
        raise UserError("detections are measured by pycocotools: pip install 'pckd[detection]'") from None
    return coco, cocoeval


def _table(boxes: Tensor, *columns: Tensor) -> np.ndarray:
    """[n, 4 + columns]: left, top, width, height, and the columns."""
    # Not in float32, where an overlap of exactly 0.6 can fall below 0.6.
    corners = boxes.detach().double().cpu().reshape(-1, 4)
    sides = corners[:, 2:] - corners[:, :2]
    parts = [corners[:, :2], sides, *(column.detach().double().cpu()[:, None] for column in columns)]
    return torch.cat(parts, 1).numpy()


def _accumulated(
    found: Mapping[int, np.ndarray], true: Mapping[int, np.ndarray], labels: Iterable[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Precision [10, 101, K, 4] and recall [10, K, 4] in parts of 1; -1 where a class has no object of that area."""
    coco, cocoeval = require_pycocotools()
    images, classes = sorted(true), list(labels)
    objects = [
        {"image_id": i, "category_id": int(label), "bbox": box, "area": area, "iscrowd": int(crowd)}
        for i in images
        for *box, label, area, crowd in true[i].tolist()
    ]
    detected = [
        {"image_id": i, "category_id": int(label), "bbox": box, "area": box[2] * box[3], "score": score}
        for i in images
        for *box, label, score in found[i].tolist()
    ]
    # pycocotools talks on standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = cocoeval.COCOeval(
            *(_index(coco.COCO(), images, classes, rows) for rows in (objects, detected)), iouType="bbox"
        )
        evaluation.params.maxDets = [MOST_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0], evaluation.eval["recall"][..., 0]


def _index(coco: Any, images: Sequence[int], classes: Sequence[int], rows: Sequence[dict[str, Any]]) -> Any:
    # Numbers of annotations begin at 1: pycocotools takes a match with number 0 for none.
    annotations = [{**row, "id": number} for number, row in enumerate(rows, 1)]
    coco.dataset = {
        "images": [{"id": i} for i in images],
        "categories": [{"id": k} for k in classes],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _mean(values: np.ndarray) -> float | None:
    """In percent, of what is defined; None where nothing is."""
    known = values[values > -1]
    return 100 * float(known.mean()) if known.size else None
