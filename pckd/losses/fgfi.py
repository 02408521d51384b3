from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pckd.losses.levels import Levels, in_cells, mean_where, on_images
from pckd.ops import constant
from registry import LOSSES, METHODS, Boxes, Context, Output, Setup, Term, UserError


def anchor_overlaps(boxes: Boxes, size: Sequence[int], anchor: float, ratios: Sequence[float]) -> Tensor:
    """IoU of each box with the anchors of a level, [n, A, H, W]: one of each ratio around the center of each cell.

    Args:
        size: (H, W). anchor: side of a square one, in cells. ratios: height over width of the others, of equal area.
    """
    corners = in_cells(boxes, size)[:, :, None, None]
    stretch = constant(ratios, corners).sqrt()
    inside, areas = [], []
    for side, sides, cells in ((1, anchor * stretch, size[0]), (0, anchor / stretch, size[1])):
        center = torch.arange(cells, device=corners.device) + 0.5
        half = sides[:, None] / 2
        first, end = corners[:, side], corners[:, side + 2]
        inside.append((torch.minimum(end, center + half) - torch.maximum(first, center - half)).clamp_min(0))
        areas.append((end - first).clamp_min(0))
    shared = inside[0][..., :, None] * inside[1][..., None, :]
    return shared / ((areas[0] * areas[1])[..., None] + anchor**2 - shared)


def near_objects(
    boxes: Boxes,
    images: int,
    sizes: Sequence[Sequence[int]],
    *,
    anchor: float = 8.0,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    threshold: float = 0.5,
) -> list[Tensor]:
    """The cells near objects (Wang et al., arXiv 1906.03609), [B, H, W] for each level, 1 or 0.

    A cell is near a box where one of its anchors overlaps the box by more than ``threshold`` times the best overlap
    that any anchor, of any level, has with it.
    """
    overlaps = [anchor_overlaps(boxes, size, anchor, ratios) for size in sizes]
    best = torch.stack([level.flatten(1).amax(1) for level in overlaps]).amax(0)
    near = [(level > threshold * best[:, None, None, None]).any(1) for level in overlaps]
    return [on_images(level.to(best.dtype), boxes.image, images) for level in near]


@LOSSES.register("fgfi")
class FGFI(Levels):
    """Squared difference of the maps near objects, the student's after a 3x3 convolution; [B] (arXiv 1906.03609).

    Squares are summed over the channels, averaged over the cells near objects of the batch, and halved; the mean over
    the levels is taken (published: one level). Anchors are those of the usual proposal network on a pyramid.

    Args:
        threshold: psi in the paper, 0 to 1. anchor: side of a square anchor, in cells of its level; detectors on a
            pyramid have 8 (32 pixels at stride 4). ratios: height over width of the anchors.
    """

    needs = ("boxes",)

    def __init__(
        self,
        setup: Setup,
        *,
        threshold: float = 0.5,
        anchor: float = 8.0,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
    ) -> None:
        super().__init__("fgfi", setup, kernel=3, always=True)
        if not (0 <= threshold < 1 and anchor > 0 and ratios and min(ratios) > 0):
            raise UserError("fgfi: 0 <= threshold < 1, anchor above 0, and one ratio or more, each above 0")
        self.threshold, self.anchor, self.ratios = threshold, anchor, tuple(ratios)
        for layer in self.align:
            nn.init.normal_(layer.get_parameter("weight"), std=1e-4)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        pairs = self.pairs(student, teacher)
        masks = near_objects(
            context.boxes,
            len(context.index),
            [target.shape[2:] for _, target in pairs],
            anchor=self.anchor,
            ratios=self.ratios,
            threshold=self.threshold,
        )
        levels = [
            mean_where((own - target).square().sum(1), mask) / 2
            for (own, target), mask in zip(pairs, masks, strict=True)
        ]
        return torch.stack(levels).mean(0)


@METHODS.register("fgfi", paper="Wang et al., arXiv 1906.03609", year=2019)
def fgfi(ce: float = 1.0, weight: float = 0.01, threshold: float = 0.5) -> list[Term]:
    """Fine-grained feature imitation (Wang et al. 2019): a supervised term plus maps near objects.

    Weight and threshold are those of the released Faster R-CNN.
    """
    return [Term("cross_entropy", ce), Term("fgfi", weight, rows="images", options={"threshold": threshold})]
