"""Maps of whole images, level by level: which pair up, at which width, and where objects and classes lie on them.

Shapes: B images, n boxes of theirs, C channels, H rows and W columns of cells of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.maps import Shape, matched, paired, paired_shapes
from pckd.ops import constant
from registry import Boxes, NotApplicable, Output, Setup

T = TypeVar("T")
FEATURES = -2
"""The level before the last: in segmentation the features that the class scores are made of."""
ROUNDING = 1e-3
"""Of a cell: a box that ends this close to a cell's edge ends at it."""


def of_level(pairs: Sequence[T], level: int | None) -> list[T]:
    """The pair at this index, or all of them for None."""
    return list(pairs) if level is None else [pairs[level]]


def level_shapes(loss: str, setup: Setup, level: int | None) -> list[tuple[Shape, Shape]]:
    """The shapes of the pairs that a loss compares.

    Raises:
        NotApplicable: the networks have no such level.
    """
    pairs = paired_shapes(loss, setup.student.maps, setup.teacher.maps)
    if level is not None and not -len(pairs) <= level < len(pairs):
        raise NotApplicable(f"{loss}: level={level}, but this pair has {len(pairs)}; choose another level")
    return of_level(pairs, level)


class Levels(nn.Module):
    """Base class of losses that compare two pyramids level by level.

    Levels are paired from the last backwards. Where the widths differ, a convolution takes the student's to the
    teacher's; the size stays.

    Args:
        loss: its name, for messages. level: the index of the only pair to compare; by default all are.
        kernel: side of the convolution. always: whether maps of equal width have one, too. bias: whether it has a bias.
    """

    needs: tuple[str, ...] = ()

    def __init__(
        self,
        loss: str,
        setup: Setup,
        level: int | None = None,
        *,
        kernel: int = 1,
        always: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        for fact in self.needs:
            setup.require(fact, loss)
        self.level = level
        shapes = level_shapes(loss, setup, level)
        self.widths = [teacher[0] for _, teacher in shapes]
        self.align = nn.ModuleList(
            nn.Conv2d(student[0], teacher[0], kernel, padding=kernel // 2, bias=bias)
            if always or student[0] != teacher[0]
            else nn.Identity()
            for student, teacher in shapes
        )

    def pairs(self, student: Output, teacher: Output) -> list[tuple[Tensor, Tensor]]:
        """Student's and teacher's map of each level, [B, C, H, W] both, in at least float32."""
        maps = of_level(paired(student.maps, teacher.maps), self.level)
        return [matched(align(own), target) for align, (own, target) in zip(self.align, maps, strict=True)]


def in_cells(boxes: Boxes, size: Sequence[int]) -> Tensor:
    """The boxes [n, 4], left, top, right, bottom, in cells of a grid of ``size`` (H, W)."""
    height, width = size
    return boxes.xyxy * constant([width, height, width, height], boxes.xyxy)


def cells_of(boxes: Boxes, size: Sequence[int]) -> Tensor:
    """Which cells of a grid each box touches, [n, H, W], bool; one at least."""
    corners = in_cells(boxes, size)
    touched = []
    for side, cells in ((1, size[0]), (0, size[1])):
        first = (corners[:, side] + ROUNDING).floor().clamp(0, cells - 1)
        end = (corners[:, side + 2] - ROUNDING).ceil().maximum(first + 1)
        position = torch.arange(cells, device=corners.device)
        touched.append((position >= first[:, None]) & (position < end[:, None]))
    rows, columns = touched
    return rows[:, :, None] & columns[:, None, :]


def on_images(values: Tensor, image: Tensor, images: int) -> Tensor:
    """For each image and cell the largest of its boxes' values [n, H, W], none below 0; 0 without a box: [B, H, W]."""
    result = values.new_zeros(images, *values.shape[1:])
    return result.scatter_reduce(0, image[:, None, None].expand_as(values), values, "amax")


def labels_at(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """The class of each cell, [B, H, W]: that of the nearest pixel, as interpolation "nearest" counts."""
    return F.interpolate(pixels[:, None].double(), tuple(size), mode="nearest")[:, 0].long()


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Each image's part [B] of the mean of ``values`` [B, ...] where ``mask``; their mean over the images is that mean.

    0 where the mask is empty.
    """
    mask = mask.to(values.dtype)
    return (values * mask).flatten(1).sum(1) * (len(values) / mask.sum().clamp_min(1))
