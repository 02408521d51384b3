"""What networks say of the pixels of test images, beside the images and the truth."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.plots.detections import IMAGES, pixels
from pckd.plots.networks import Workshop
from pckd.plots.style import class_color, evenly, headline, image_rows, text_color
from pckd.runs import Group
from pckd.tasks.segmentation_scores import Confusion, pixel_classes

_NAMED = 0.004
"""A class with a smaller share of an image's pixels is not named in it."""


@torch.no_grad()
def draw_segments(groups: Sequence[Group], workshop: Workshop) -> tuple[Any, list[str]]:
    """A row of images, one of their truth, and one for each network's answers."""
    shown = workshop.shown(groups)
    index = torch.tensor(evenly(len(shown.split), IMAGES))
    loader = shown.loader(shown.split.part(index, shown.split.name, evaluation=True))
    batch = next(iter(loader.epoch(1)))
    images = pixels(loader.split, batch)
    truth = batch.masks.cpu()
    titles, rows = ["image", "truth"], [truth]
    for title, network in shown.networks:
        with shown.device.autocast():
            logits = network(batch.images).maps[-1]
        answers = pixel_classes(logits, truth.shape[1:]).cpu()
        # What is unknown of the truth is not shown of the answers, either.
        rows.append(answers.where(truth >= 0, -1))
        counted = Confusion(shown.split.classes, truth.device, shown.split.name)
        counted.add(answers, truth)
        titles.append(f"{textwrap.fill(title, 34)}:\nmIoU here {counted.result().scores['miou']:.0f}")
    figure, places = image_rows(titles, images)
    for row, masks in zip(places[1:], rows, strict=True):
        for axes, image, mask in zip(row, images, masks, strict=True):
            _paint(axes, image, mask[: image.shape[0], : image.shape[1]], shown.split.classes)
    unknown = ", black: of no class" if bool((truth < 0).any()) else ""
    headline(figure, f"Classes of the pixels of {len(images)} unseen images; gray: background{unknown}")
    return figure, shown.notes


def _paint(axes: Any, image: np.ndarray, mask: Tensor, classes: Sequence[str]) -> None:
    """Show a mask over its image in gray, and write the name of each class where most of it lies around."""
    gray = (0.25 + 0.5 * image.mean(2, keepdims=True)).repeat(3, axis=2)
    gray[(mask < 0).numpy()] = 0
    for k in mask[mask > 0].unique().tolist():
        own, color = mask == k, class_color(k - 1)
        gray[own.numpy()] = 0.25 * gray[own.numpy()] + 0.75 * np.array(color)
        if own.float().mean() >= _NAMED:
            y, x = divmod(innermost(own), mask.shape[1])
            pad = {"facecolor": color, "edgecolor": "none", "pad": 0.8}
            style = {"ha": "center", "va": "center", "fontsize": 6.5, "clip_on": True, "bbox": pad}
            axes.text(x, y, classes[k - 1], color=text_color(color), **style)
    axes.get_images()[0].set_data(gray)


def innermost(mask: Tensor) -> int:
    """Position, in the flattened mask [h, w], of the pixel that is farthest from what is outside."""
    inside = mask.float()[None, None]
    depth = torch.zeros_like(inside)
    while inside.any():
        depth += inside
        inside = -F.max_pool2d(F.pad(-inside, (1, 1, 1, 1)), 3, stride=1)
    return int(depth.argmax())
