from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd.ops import NORM_FLOOR, full
from registry import LOSSES, METHODS, Context, NotApplicable, Output, Setup, Term

TINY = 1e-7
"""Added to areas that divide, as torchvision does."""


def quality_focal(student_scores: Tensor, teacher_scores: Tensor) -> Tensor:
    """Binary cross entropy with the teacher's probabilities, times the distance from them; of any shape.

    Args:
        student_scores: logits, each of a probability of its own. teacher_scores: likewise; constant.
    """
    student_scores, target = full(student_scores), full(teacher_scores.detach()).sigmoid()
    entropy = F.binary_cross_entropy_with_logits(student_scores, target, reduction="none")
    return entropy * (student_scores.sigmoid() - target).abs()


def with_statistics_of(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """The student's map with the teacher's mean and deviation of each channel, over images and cells; [B, C, H, W]."""
    student_map, teacher_map = full(student_map), full(teacher_map.detach())
    (variance, mean), (wanted, level) = (
        torch.var_mean(m, (0, 2, 3), correction=0, keepdim=True) for m in (student_map, teacher_map)
    )
    return (student_map - mean) * wanted.sqrt() * variance.clamp_min(NORM_FLOOR**2).rsqrt() + level


def giou_loss(boxes: Tensor, others: Tensor) -> Tensor:
    """1 - GIoU of each box with its other (Rezatofighi et al., arXiv 1902.09630); [..., 4] each to [...].

    torchvision's picks the boxes that overlap by a mask, for which an accelerator makes the host wait.
    """

    def area(low: Tensor, high: Tensor) -> Tensor:
        width, height = (high - low).unbind(-1)
        return width * height

    (low, high), (other_low, other_high) = boxes.split(2, -1), others.split(2, -1)
    first, end = torch.maximum(low, other_low), torch.minimum(high, other_high)
    shared = area(first, torch.maximum(first, end))
    union = area(low, high) + area(other_low, other_high) - shared
    hull = area(torch.minimum(low, other_low), torch.maximum(high, other_high))
    return 1 - (shared / (union + TINY) - (hull - union) / (hull + TINY))


@LOSSES.register("crosskd")
class CrossKD(nn.Module):
    """What the teacher's head makes of the student's features, held to its own answer; [B] (arXiv 2306.11369).

    The features of a layer of the student's head, with the teacher's statistics, go through the rest of the teacher's
    (CrossKD, Wang et al.). Scores have the quality focal loss, boxes 1 - GIoU weighted by the teacher's best score, at
    every location; both are over the number of locations that show an object. It is published for dense detectors, and
    refused for others: a box head judges proposals. Where widths differ, a 1x1 convolution comes first, of which the
    paper has none.

    Args:
        layer: of the head, whose features are taken, from 0 for the pyramid; released: 3, and for FCOS 2.
        scores, boxes: weights; released: 1 and 1, and for FCOS 0.4 and 0.75 (there of -log IoU, over the centerness).
    """

    needs = ("head",)

    def __init__(self, setup: Setup, *, layer: int = 3, scores: float = 1.0, boxes: float = 1.0) -> None:
        super().__init__()
        student, teacher = setup.student, setup.teacher
        if not student.head or not teacher.head:
            raise NotApplicable("crosskd needs two dense detectors (FCOS, RetinaNet) and rows='images'")
        last = min(len(student.head), len(teacher.head)) - 1
        if not 0 <= layer <= last:
            raise NotApplicable(f"crosskd: layer must be 0 to {last}, the layers of both heads, not {layer}")
        if [m[1:] for m in student.maps] != [m[1:] for m in teacher.maps]:
            raise NotApplicable("crosskd needs two pyramids with levels of the same sizes")
        self.layer, self.scores, self.boxes = layer, scores, boxes
        widths = student.head[layer], teacher.head[layer]
        # Without a bias: the mean of each channel is replaced.
        layers = (nn.Identity() if widths[0] == widths[1] else nn.Conv2d(*widths, 1, bias=False) for _ in range(2))
        self.align = nn.ModuleList(layers)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        own, head = student.head, teacher.head
        if not own or not head:
            raise NotApplicable("crosskd needs two dense detectors (FCOS, RetinaNet) and rows='images'")
        with torch.no_grad():
            taught = head.features(teacher.maps, self.layer)
            goal, target = head.predict(taught, self.layer)
        crossed = self._crossed(own.features(student.maps, self.layer), taught)
        scores, boxes = head.predict(crossed, self.layer)
        # Column 0 says nothing.
        goal = full(goal[..., 1:])
        values = self.scores * quality_focal(scores[..., 1:], goal).sum(-1)
        values = values + self.boxes * goal.sigmoid().amax(-1) * giou_loss(full(boxes), full(target))
        labels = context.locations
        # Each image's part of the sum: their mean is the sum over the locations with an object.
        return (values * (labels >= 0)).sum(1) * (len(labels) / (labels > 0).sum().clamp_min(1))

    def _crossed(
        self, own: tuple[list[Tensor], list[Tensor]], taught: tuple[list[Tensor], list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        scores, boxes = (
            [with_statistics_of(align(m), target) for m, target in zip(*branch, strict=True)]
            for align, *branch in zip(self.align, own, taught, strict=True)
        )
        return scores, boxes


@METHODS.register("crosskd", paper="Wang et al., arXiv 2306.11369", year=2024)
def crosskd(ce: float = 1.0, layer: int = 3, scores: float = 1.0, boxes: float = 1.0) -> list[Term]:
    """CrossKD (Wang et al. 2024): a supervised term plus the teacher's head on the student's features.

    All numbers are those of the released RetinaNet; those of FCOS are ``layer=2, scores=0.4, boxes=0.75``.
    """
    options = {"layer": layer, "scores": scores, "boxes": boxes}
    return [Term("cross_entropy", ce), Term("crosskd", rows="images", options=options)]
