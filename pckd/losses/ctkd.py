from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pckd.losses.kd import softened
from pckd.ops import above_zero, published_epoch
from registry import LOSSES, METHODS, Context, Output, Setup, Term


@LOSSES.register("ctkd")
class CurriculumTemperature(nn.Module):
    """KD at a temperature that is learned against the student: it raises the loss; [N] (Li et al., arXiv 2211.16231).

    The temperature is least + span * sigmoid(level). The optimizer is shown the level's gradient times -lambda, where
    lambda rises from 0 to 1 over the first epochs as a cosine: first an easy task, then a hard one.

    Args:
        least: below any temperature. span: how far above it the highest is.
        ramp: epochs, of 240, over which lambda rises.
    """

    reads_maps = False
    softmax = True

    def __init__(self, setup: Setup, *, least: float = 1.0, span: float = 20.0, ramp: int = 10) -> None:
        super().__init__()
        above_zero("ctkd", "least", "span", "ramp")(setup, least=least, span=span, ramp=ramp)
        self.least, self.span, self.ramp = least, span, ramp
        self.level = nn.Parameter(torch.ones(1))

    def temperature(self, context: Context) -> Tensor:
        """The temperature now, [1]; its gradient is reversed."""
        share = min(1.0, published_epoch(context) / self.ramp)
        strength = (1 - math.cos(math.pi * share)) / 2
        # The second part is 0, and has the gradient.
        level = self.level.detach() - strength * (self.level - self.level.detach())
        return self.least + self.span * level.sigmoid()

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return softened(student.logits, teacher.logits, self.temperature(context))


@METHODS.register("ctkd", paper="Li et al., arXiv 2211.16231", year=2023)
def ctkd(
    ce: float = 0.1,
    weight: float = 0.9,
    least: float = 1.0,
    span: float = 20.0,
    ramp: int = 10,
    standardize: bool = False,
) -> list[Term]:
    """Curriculum temperature (Li et al. 2023): KD at one learned temperature, which makes the task ever harder.

    This is the global temperature, as released for CIFAR-100; the paper also has one for each image.

    Args:
        ce: weight of the cross entropy. weight: of KD.
        least, span: the temperature lies between ``least`` and ``least + span``. ramp: epochs, of 240, over which the
            temperature begins to be learned; 5 on ImageNet, with both weights 1.
        standardize: whether the logits are standardized first (Sun et al., arXiv 2403.01427).
    """
    options = {"least": least, "span": span, "ramp": ramp}
    return [Term("cross_entropy", ce), Term("ctkd", weight, options=options, standardize=standardize)]
