from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pckd.losses.levels import Levels, cells_of, in_cells, mean_where, on_images
from registry import LOSSES, METHODS, Boxes, Context, Output, Setup, Term

SMALLEST = 14.0
"""Cells of the first level: from twice this side on a box is on the second level (published: 56 pixels at stride 4)."""


def object_masks(boxes: Boxes, images: int, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The cells that objects touch, [B, H, W] for each level, 1 or 0. As released each box is on the level of its size.

    A box whose sides have the geometric mean s, in cells of the first level, is on level floor(log2(s / 14)), counted
    from 0, or on the first or last one.
    """
    corners = in_cells(boxes, sizes[0])
    sides = (corners[:, 2:] - corners[:, :2]).clamp_min(0)
    level = (sides.prod(1).sqrt() / SMALLEST + 1e-6).log2().floor().clamp(0, len(sizes) - 1)
    cells = [cells_of(boxes, size) & (level == i)[:, None, None] for i, size in enumerate(sizes)]
    return [on_images(some.to(corners.dtype), boxes.image, images) for some in cells]


def decoupled_imitation(
    student_map: Tensor, teacher_map: Tensor, mask: Tensor, foreground: float, background: float
) -> Tensor:
    """Half the mean squared difference inside and outside of objects, each weighted by itself (arXiv 2103.14475).

    Args:
        student_map, teacher_map: [B, C, H, W], after the student's projection. mask: [B, H, W], 1 on objects, else 0.
        foreground, background: weights of the two means, which are over the cells of the batch.

    Returns:
        [B].
    """
    squares = (student_map - teacher_map.detach()).square().mean(1) / 2
    return foreground * mean_where(squares, mask) + background * mean_where(squares, 1 - mask)


@LOSSES.register("defeat")
class DeFeat(Levels):
    """Squared difference of the maps on objects and beside them, decoupled; [B] (Guo et al., arXiv 2103.14475).

    The student's maps go through a 3x3 convolution; the mean over the levels is taken. The part that decouples the
    class scores of proposals is not here.
    """

    needs = ("boxes",)

    def __init__(self, setup: Setup, *, foreground: float = 3.0, background: float = 12.0) -> None:
        super().__init__("defeat", setup, kernel=3, always=True)
        self.weights = foreground, background
        for layer in self.align:
            nn.init.normal_(layer.get_parameter("weight"), std=1e-4)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        pairs = self.pairs(student, teacher)
        masks = object_masks(context.boxes, len(context.index), [target.shape[2:] for _, target in pairs])
        levels = [decoupled_imitation(*pair, mask, *self.weights) for pair, mask in zip(pairs, masks, strict=True)]
        return torch.stack(levels).mean(0)


@METHODS.register("defeat", paper="Guo et al., arXiv 2103.14475", year=2021)
def defeat(ce: float = 1.0, foreground: float = 3.0, background: float = 12.0) -> list[Term]:
    """Decoupled features (Guo et al. 2021): a supervised term plus maps on objects and beside them.

    The weights are those of the released Faster R-CNN on PASCAL VOC.
    """
    options = {"foreground": foreground, "background": background}
    return [Term("cross_entropy", ce), Term("defeat", 1.0, rows="images", options=options)]
