from __future__ import annotations

import torch
from torch import Tensor

from pckd.losses.levels import Levels
from pckd.losses.maps import matched
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


def channel_divergence(student_map: Tensor, teacher_map: Tensor, temperature: float = 1.0) -> Tensor:
    """Channel-wise distillation (Shu et al., arXiv 2011.13256): KL(teacher || student) of each channel over the cells.

    Args:
        student_map: [B, C, Hs, Ws], features or class scores. teacher_map: [B, C, Ht, Wt]; constant. Of two sizes the
            larger is average pooled. temperature: tau > 0.

    Returns:
        [B]: tau^2 times the mean over the channels.
    """
    student, teacher = (m.flatten(2).div(temperature).log_softmax(2) for m in matched(student_map, teacher_map))
    return (teacher.exp() * (teacher - student)).sum(2).mean(1) * temperature**2


@LOSSES.register("cwd")
class CWD(Levels):
    """Divergence of each channel's distribution over the cells, summed over the levels; [B] (arXiv 2011.13256)."""

    def __init__(self, setup: Setup, *, temperature: float = 1.0, level: int | None = None) -> None:
        super().__init__("cwd", setup, level, bias=False)
        if not temperature > 0:
            raise UserError(f"cwd: temperature must be above 0, not {temperature}")
        self.temperature = temperature

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        pairs = self.pairs(student, teacher)
        return torch.stack([channel_divergence(*pair, self.temperature) for pair in pairs]).sum(0)


@METHODS.register("cwd", paper="Shu et al., arXiv 2011.13256", year=2021)
def cwd(ce: float = 1.0, weight: float = 10.0, temperature: float = 1.0, level: int | None = None) -> list[Term]:
    """Channel-wise distillation (Shu et al. 2021): a supervised term plus the channels' saliency.

    Weight and temperature are those of mmrazor's Faster R-CNN, on every FPN level. Its segmentation has
    ``cwd(weight=5, level=-1)``: the class scores alone.
    """
    options = {"temperature": temperature, "level": level}
    return [Term("cross_entropy", ce), Term("cwd", weight, rows="images", options=options)]
