from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term


@LOSSES.register("ofd")
class FeatureOverhaul(nn.Module):
    """Partial L2 of the stages' maps before their activation, after a margin ReLU; [N] (Heo et al., arXiv 1904.01866).

    The margin of a channel, E[t | t < 0], is the running mean over the training batches. The published code reads it
    off the batch norm before the activation, which says nothing of a sum with a shortcut.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.connectors = nn.ModuleList()
        pairs = functional.paired_shapes("ofd", setup.student.preacts[1:], setup.teacher.preacts[1:])
        for stage, ((width, *_), (target, *_)) in enumerate(pairs):
            convolution = nn.Conv2d(width, target, 1, bias=False)
            nn.init.normal_(convolution.weight, std=math.sqrt(2 / target))
            self.connectors.append(nn.Sequential(convolution, nn.BatchNorm2d(target)))
            self.register_buffer(f"margin{stage}", torch.zeros(target))
            self.register_buffer(f"count{stage}", torch.zeros(target))

    @torch.no_grad()
    def margin(self, stage: int, preact: Tensor) -> Tensor:
        """The margins [C] of a stage; in training, with this batch's values counted."""
        margin, count = self.get_buffer(f"margin{stage}"), self.get_buffer(f"count{stage}")
        if self.training:
            mean, new = functional.negative_means(preact)
            count += new
            margin += (mean - margin) * new / count.clamp_min(1)
        return margin

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        pairs = functional.paired(student.preacts[1:], teacher.preacts[1:])
        connected = [connect(s) for connect, (s, _) in zip(self.connectors, pairs, strict=True)]
        margins = [self.margin(stage, t) for stage, (_, t) in enumerate(pairs)]
        return functional.ofd(connected, [t for _, t in pairs], margins)


@METHODS.register("ofd", paper="Heo et al., arXiv 1904.01866", year=2019)
def ofd(ce: float = 1.0, weight: float = 1e-3) -> list[Term]:
    """Overhaul of feature distillation (Heo et al. 2019): cross entropy plus pre-activations of the stages."""
    return [Term("cross_entropy", ce), Term("ofd", weight)]
