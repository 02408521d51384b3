from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pckd.losses.ab import later_layers_count_more
from pckd.losses.maps import matched, paired, paired_shapes
from pckd.ops import full
from registry import LOSSES, METHODS, Context, Output, Setup, Term


def ofd(student_preacts: Sequence[Tensor], teacher_preacts: Sequence[Tensor], margins: Sequence[Tensor]) -> Tensor:
    """OFD, partial L2 after a margin ReLU; [N] (Heo et al., arXiv 1904.01866, d_p and sigma_m).

    The teacher's value is max(t, m). Squared differences are summed over the neurons, except where the teacher is off
    and the student already below that value. The i-th of n layers counts 2^(i - n), as in the published code.

    Args:
        student_preacts: [N, C, Hs, Ws] each, after the connector; teacher_preacts: [N, C, Ht, Wt] each; constant.
            Paired from the last backwards; of two sizes the larger is average pooled.
        margins: [C] each, not positive: m, one for each pair.
    """
    layers = []
    for pair, margin in zip(paired(student_preacts, teacher_preacts), margins, strict=True):
        student, teacher = matched(*pair)
        target = torch.maximum(teacher, full(margin.detach())[:, None, None])
        counts = (student > target) | (target > 0)
        layers.append(((student - target) * counts).square().flatten(1).sum(1))
    return later_layers_count_more(layers)


def negative_means(preact: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the negative values of each channel: E[x | x < 0], OFD's margin (arXiv 1904.01866, m_C).

    Of a map [N, C, H, W] the means [C], zero where a channel has no negative value, and the counts [C] of such values.
    """
    preact = full(preact.detach())
    counts = (preact < 0).to(preact.dtype).sum((0, 2, 3))
    return preact.clamp_max(0).sum((0, 2, 3)) / counts.clamp_min(1), counts


@LOSSES.register("ofd")
class FeatureOverhaul(nn.Module):
    """Partial L2 of the stages' maps before their activation, after a margin ReLU; [N] (Heo et al., arXiv 1904.01866).

    The margin of a channel, E[t | t < 0], is the running mean over the training batches. The published code reads it
    off the batch norm before the activation, which says nothing of a sum with a shortcut.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.connectors = nn.ModuleList()
        pairs = paired_shapes("ofd", setup.student.preacts[1:], setup.teacher.preacts[1:])
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
            mean, new = negative_means(preact)
            count += new
            margin += (mean - margin) * new / count.clamp_min(1)
        return margin

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        pairs = paired(student.preacts[1:], teacher.preacts[1:])
        connected = [connect(s) for connect, (s, _) in zip(self.connectors, pairs, strict=True)]
        margins = [self.margin(stage, t) for stage, (_, t) in enumerate(pairs)]
        return ofd(connected, [t for _, t in pairs], margins)


@METHODS.register("ofd", paper="Heo et al., arXiv 1904.01866", year=2019)
def ofd_method(ce: float = 1.0, weight: float = 1e-3) -> list[Term]:
    """Overhaul of feature distillation (Heo et al. 2019): cross entropy plus pre-activations of the stages.

    The margins are means of the negative responses, as the paper defines them: -0.8, -1.0 and -2.0 in the stages of a
    resnet20. The released ones, read off a batch norm, are -0.8 in all of them. Where the student's map is the larger
    one, in no pair of the literature, it is pooled; mdistiller repeats the teacher's, which is another loss.
    """
    return [Term("cross_entropy", ce), Term("ofd", weight)]
