from __future__ import annotations

import torch
from torch import Tensor, nn

from pckd.losses.levels import Levels, cells_of, on_images
from pckd.ops import exact, full
from registry import LOSSES, METHODS, Boxes, Context, Output, Setup, Term, UserError


def box_masks(boxes: Boxes, images: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Foreground and background weights of the cells, [B, H, W] each.

    A cell of a box has 1 over the number of the box's cells, of several boxes the largest; another cell has 1 over
    the number of such cells of its image. (The released code counts one more row and column to each box.)
    """
    cells = cells_of(boxes, size)
    foreground = on_images(cells / cells.sum((1, 2), keepdim=True), boxes.image, images)
    outside = (foreground == 0).to(foreground.dtype)
    return foreground, outside / outside.sum((1, 2), keepdim=True).clamp_min(1)


def attention(feature_map: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Where a map [B, C, H, W] is strong: over the cells [B, H, W], over the channels [B, C].

    Each is a softmax of mean magnitudes, with mean 1.
    """
    strength = full(feature_map).abs()
    cells, channels = strength.mean(1), strength.mean((2, 3))
    spatial = (cells.flatten(1) / temperature).softmax(1).view_as(cells) * cells[0].numel()
    return spatial, (channels / temperature).softmax(1) * channels.shape[1]


def focal(student_map: Tensor, teacher_map: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Squared difference weighted by the teacher's attention and ``weights`` [B, H, W], summed: [B, C, H, W] to [B]."""
    teacher_map = teacher_map.detach()
    spatial, channel = attention(teacher_map, temperature)
    squares = (full(student_map) - full(teacher_map)).square() * channel[:, :, None, None]
    return (squares.sum(1) * spatial * weights).flatten(1).sum(1)


def attention_difference(student_map: Tensor, teacher_map: Tensor, temperature: float) -> Tensor:
    """Absolute differences of both attentions, summed: [B]."""
    pairs = zip(attention(student_map, temperature), attention(teacher_map.detach(), temperature), strict=True)
    return torch.stack([(own - target).abs().flatten(1).sum(1) for own, target in pairs]).sum(0)


class GlobalContext(nn.Module):
    """GCBlock: to each cell is added what a bottleneck makes of the map's attention-weighted mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(1, width // 2)
        self.where = nn.Conv2d(width, 1, 1)
        self.change = nn.Sequential(
            nn.Conv2d(width, narrow, 1), nn.LayerNorm([narrow, 1, 1]), nn.ReLU(), nn.Conv2d(narrow, width, 1)
        )
        nn.init.kaiming_normal_(self.where.weight)
        for parameter in self.change[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        share = full(self.where(x)).flatten(2).softmax(2)
        with exact(x):
            context = full(x).flatten(2) @ share.transpose(1, 2)
        return x + full(self.change(context[..., None]))


@LOSSES.register("fgd")
class FGD(Levels):
    """Focal and global difference of the maps, summed over the levels; [B] (Yang et al., arXiv 2111.11837).

    Args:
        foreground, background: weights of the squared difference on objects and beside them (alpha and beta);
        attention: of the difference of the attentions (gamma);
        relation: of the squared difference of the maps after a global context block each (lambda).
        temperature: of the attentions.
    """

    needs = ("boxes",)

    def __init__(
        self,
        setup: Setup,
        *,
        foreground: float = 5e-5,
        background: float = 2.5e-5,
        attention: float = 5e-5,
        relation: float = 5e-7,
        temperature: float = 0.5,
    ) -> None:
        super().__init__("fgd", setup)
        if not temperature > 0:
            raise UserError(f"fgd: temperature must be above 0, not {temperature}")
        self.weights, self.temperature = (foreground, background, attention, relation), temperature
        self.student_context = nn.ModuleList(map(GlobalContext, self.widths))
        self.teacher_context = nn.ModuleList(map(GlobalContext, self.widths))

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        levels: list[Tensor] = []
        for i, pair in enumerate(self.pairs(student, teacher)):
            size = pair[0].shape[2], pair[0].shape[3]
            parts = [focal(*pair, mask, self.temperature) for mask in box_masks(context.boxes, len(pair[0]), size)]
            parts.append(attention_difference(*pair, self.temperature))
            related = self.student_context[i](pair[0]) - self.teacher_context[i](pair[1])
            parts.append(related.square().flatten(1).sum(1))
            levels += [weight * part for weight, part in zip(self.weights, parts, strict=True)]
        return torch.stack(levels).sum(0)


@METHODS.register("fgd", paper="Yang et al., arXiv 2111.11837", year=2022)
def fgd(
    ce: float = 1.0,
    foreground: float = 5e-5,
    background: float = 2.5e-5,
    attention: float = 5e-5,
    relation: float = 5e-7,
    temperature: float = 0.5,
) -> list[Term]:
    """Focal and global distillation (Yang et al. 2022): a supervised term plus maps by boxes, attention and relation.

    All numbers are those of the released Faster R-CNN.
    """
    options = {"foreground": foreground, "background": background, "attention": attention, "relation": relation}
    return [Term("cross_entropy", ce), Term("fgd", rows="images", options={**options, "temperature": temperature})]
