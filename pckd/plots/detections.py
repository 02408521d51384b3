"""What networks detect in test images, beside what is in them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from pckd.plots.networks import Workshop
from pckd.plots.style import class_color, evenly, headline, image_rows, text_color
from pckd.runs import Group
from registry import UserError

IMAGES = 4
"""So many stand side by side."""
OVERLAP = 0.5
"""Intersection over union with an object, from which on a detection is right."""


class Judged(NamedTuple):
    """Detections of an image, the best first, and what is said of them and of its objects."""

    boxes: Tensor
    """[m, 4]."""
    labels: Tensor
    scores: Tensor
    right: Tensor
    """[m]: whether it is an object's of its class, and no better one's."""
    missed: Tensor
    """[n]: the objects without a detection."""


def judge(found: Mapping[str, Tensor], boxes: Tensor, labels: Tensor, score: float) -> Judged:
    """Give each detection with at least this score the object of its class that it overlaps most and that is left.

    Args:
        found: ``boxes`` [m, 4], ``labels`` and ``scores``. boxes, labels: of the n objects.
    """
    scores = found["scores"].float().cpu()
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= score]
    shown, names = (found[name].float().cpu()[order] for name in ("boxes", "labels"))
    overlap = box_iou(shown, boxes.float()) * (names[:, None] == labels)
    missed = torch.ones(len(boxes), dtype=torch.bool)
    right = torch.zeros(len(shown), dtype=torch.bool)
    for row in range(len(shown)):
        left = overlap[row] * missed
        if len(left) and left.max() >= OVERLAP:
            missed[left.argmax()], right[row] = False, True
    return Judged(shown, names.long(), scores[order], right, missed)


@torch.no_grad()
def draw_detections(groups: Sequence[Group], workshop: Workshop) -> tuple[Any, list[str]]:
    """A row of images with their objects, and one for each network with its detections."""
    shown = workshop.shown(groups)
    known = [i for i, annotation in enumerate(shown.split.annotations) if len(annotation.boxes)]
    if not known:
        raise UserError(f"{shown.split.name}: none of its images has an object, so that there is nothing to detect")
    index = torch.tensor([known[i] for i in evenly(len(known), IMAGES)])
    loader = shown.loader(shown.split.part(index, shown.split.name, evaluation=True))
    batch = next(iter(loader.epoch(1)))
    images = pixels(loader.split, batch)
    truth = [(boxes.cpu(), labels.cpu()) for boxes, labels in zip(batch.boxes, batch.labels, strict=True)]
    rows, titles = [], [f"truth:\n{sum(len(labels) for _, labels in truth)} objects"]
    for title, network in shown.networks:
        with shown.device.autocast():
            found: Any = network.detect(batch.images)  # type: ignore[operator]
        rows.append([judge(one, *true, workshop.score) for one, true in zip(found, truth, strict=True)])
        right, missed = (torch.cat([getattr(one, name) for one in rows[-1]]) for name in ("right", "missed"))
        counted = f"{(~missed).sum()} of {len(missed)} found, {(~right).sum()} wrong"
        titles.append(f"{textwrap.fill(title, 34)}:\n{counted}")
    figure, places = image_rows(titles, images)
    classes = shown.split.classes
    for axes, (boxes, labels) in zip(places[0], truth, strict=True):
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            _box(axes, box, label, classes[label - 1])
    for row, judged in zip(places[1:], rows, strict=True):
        for axes, one, (boxes, _) in zip(row, judged, truth, strict=True):
            for box in boxes[one.missed].tolist():
                _frame(axes, box, "white", ":")
            # The best last, on top of the others.
            for i in reversed(range(len(one.boxes))):
                label = int(one.labels[i])
                text = f"{classes[label - 1]} {100 * one.scores[i]:.0f}"
                _box(axes, one.boxes[i].tolist(), label, text, "-" if one.right[i] else "--")
    how = "solid: right, dashed: wrong, dotted: missed"
    headline(figure, f"Detections of {100 * workshop.score:g} % and more in {len(images)} unseen images; {how}")
    return figure, shown.notes


def pixels(split: Any, batch: Any) -> list[np.ndarray]:
    """The images of a batch, [h, w, 3], without what they are padded with."""
    found = []
    for image, index, (x, y, *_) in zip(batch.images.cpu(), batch.index.tolist(), batch.scale.tolist(), strict=True):
        height, width = split.images[index].shape[1:]
        height, width = round(height * y), round(width * x)
        found.append(image[:, :height, :width].permute(1, 2, 0).clamp(0, 1).numpy())
    return found


def _box(axes: Any, box: Sequence[float], label: int, text: str, line: str = "-") -> None:
    color = class_color(label - 1)
    _frame(axes, box, color, line)
    left, top, _, _ = box
    # Inside the box where there is no room above it.
    above = top > 0.08 * max(axes.get_ylim())
    axes.text(
        max(left, 0),
        top,
        text,
        fontsize=6.5,
        color=text_color(color),
        va="bottom" if above else "top",
        clip_on=True,
        bbox={"facecolor": color, "edgecolor": "none", "pad": 0.8},
    )


def _frame(axes: Any, box: Sequence[float], color: Any, line: str) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    left, top, right, bottom = box
    dark = [withStroke(linewidth=2.6, foreground="black", alpha=0.6)]
    axes.add_patch(
        Rectangle(
            (left - 0.5, top - 0.5),
            right - left,
            bottom - top,
            fill=False,
            edgecolor=color,
            linewidth=1.5,
            linestyle=line,
            path_effects=dark,
        )
    )
