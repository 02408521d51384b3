"""Mean intersection over union of a segmentation, from one matrix of counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo.probe import evaluating
from pckd.device import Device
from pckd.distributed import add_up
from registry import UserError

__all__ = ["BACKGROUND", "Confusion", "SegmentationScores", "pixel_classes", "segmentation_scores"]

BACKGROUND = "background"
"""What class 0 is called."""


@dataclass(frozen=True)
class SegmentationScores:
    """How good the answers are, in percent."""

    scores: dict[str, float]
    """``miou``, the mean of ``by_class``, and ``pixel_accuracy``, the share of pixels that are right."""
    by_class: dict[str, float]
    """Intersection over union of each class, the background first; a class that no pixel has, neither in truth nor in
    an answer, is left out."""


class Confusion:
    """Counts how often pixels of each class get each answer, where the answers are.

    Counts are integers: their sums do not depend on the order in which a device adds.

    Args:
        classes: names of the classes, without the background. name: of the data, for messages.
    """

    def __init__(self, classes: Sequence[str], device: torch.device, name: str = "") -> None:
        self.classes, self.name = (BACKGROUND, *classes), name
        self.counts = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64, device=device)
        """[K + 1, K + 1]: the true class, and the answer."""

    def add(self, answers: Tensor, truth: Tensor) -> None:
        """Count pixels.

        Args:
            answers: classes, 0 to K. truth: of the same shape; below 0 where a pixel counts for nothing.
        """
        known = truth >= 0
        pairs = truth[known] * len(self.counts) + answers[known]
        self.counts += torch.bincount(pairs, minlength=self.counts.numel()).view_as(self.counts)

    def result(self) -> SegmentationScores:
        """The scores of the pixels of all processes, the same in each.

        Raises:
            UserError: there is no pixel that counts.
        """
        counts = add_up(self.counts.clone()).double().cpu()
        if not counts.any():
            raise UserError(f"{self.name or 'the data set'}: none of its pixels has a class, so that none is measured")
        right = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - right
        by_class = {name: 100 * float(right[k] / union[k]) for k, name in enumerate(self.classes) if union[k]}
        miou = sum(by_class.values()) / len(by_class)
        return SegmentationScores({"miou": miou, "pixel_accuracy": 100 * float(right.sum() / counts.sum())}, by_class)


def pixel_classes(logits: Tensor, size: Sequence[int]) -> Tensor:
    """[B, H, W], the class of each pixel, from logits [B, K + 1, h, w] of a lower resolution."""
    return F.interpolate(logits.float(), tuple(size), mode="bilinear", align_corners=False).argmax(1)


@torch.no_grad()
def segmentation_scores(network: nn.Module, loader: Any, device: Device) -> SegmentationScores:
    """Measure a network on the images of a loader, at the resolution that it is shown.

    In eval mode and without gradient. Each process measures its share; the scores are those of all.

    Args:
        loader: of a :class:`pckd.data.annotated.AnnotatedSplit` with masks, not for training.
    """
    split = loader.split
    measured = Confusion(split.classes, device.target, split.name)
    with evaluating(network):
        for batch in loader.epoch(1):
            with device.autocast():
                logits = network(batch.images).maps[-1]
            measured.add(pixel_classes(logits, batch.masks.shape[1:]), batch.masks)
    loader.say_bad()
    return measured.result()
