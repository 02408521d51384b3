from __future__ import annotations

import torch
from torch import Tensor, nn

from pckd.losses.levels import Levels
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


def masked(feature_map: Tensor, share: float) -> Tensor:
    """The map [B, C, H, W] without a random ``share`` of its cells, drawn from the global generator."""
    kept = torch.rand(len(feature_map), 1, *feature_map.shape[2:], device=feature_map.device) <= 1 - share
    return feature_map * kept


@LOSSES.register("mgd")
class MGD(Levels):
    """Squared difference of the teacher's maps and what is generated from masked ones of the student; [B].

    Masked generative distillation (Yang et al., arXiv 2205.01529). A generation block of two 3x3 convolutions makes
    each level. The squares of a level are summed, not averaged, as in the released code, and the levels are summed.

    Args:
        mask: the share of cells that is left out, 0 to 1 (lambda in the paper).
    """

    def __init__(self, setup: Setup, *, mask: float = 0.45, level: int | None = None) -> None:
        super().__init__("mgd", setup, level)
        if not 0 <= mask < 1:
            raise UserError(f"mgd: mask must be 0 or above and below 1, not {mask}")
        self.mask = mask
        self.generate = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for width in self.widths
        )

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        levels = []
        for generate, (own, target) in zip(self.generate, self.pairs(student, teacher), strict=True):
            generated = generate(masked(own, self.mask))
            levels.append((generated.to(target.dtype) - target).square().flatten(1).sum(1))
        return torch.stack(levels).sum(0)


@METHODS.register("mgd", paper="Yang et al., arXiv 2205.01529", year=2022)
def mgd(ce: float = 1.0, weight: float = 5e-7, mask: float = 0.45, level: int | None = None) -> list[Term]:
    """Masked generative distillation (Yang et al. 2022): a supervised term plus generated maps.

    Weight and mask are those of the released Faster R-CNN, on every FPN level. The released DeepLabV3 has 2e-5 and
    0.75 on the backbone's last map; nearest to it is ``mgd(weight=2e-5, mask=0.75, level=-2)``.
    """
    options = {"mask": mask, "level": level}
    return [Term("cross_entropy", ce), Term("mgd", weight, rows="images", options=options)]
