from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pckd.losses.maps import matched, paired, paired_shapes, regressor
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


def activation_boundary(
    student_preacts: Sequence[Tensor], teacher_preacts: Sequence[Tensor], margin: float = 1.0
) -> Tensor:
    """Transfer of activation boundaries; [N] (Heo et al., arXiv 1811.03233, alternative loss, as in CRD's benchmark).

    A neuron that is on in the teacher should be above ``margin`` in the student, one that is off below -``margin``;
    the squared shortfall is summed over the neurons. The i-th of n layers counts 2^(i - n), all of it times 3 / 1000.

    Args:
        student_preacts: [N, C, Hs, Ws] each, after the connector; teacher_preacts: [N, C, Ht, Wt] each; constant.
            Paired from the last backwards; of two sizes the larger is average pooled.
        margin: mu.
    """
    layers = []
    for pair in paired(student_preacts, teacher_preacts):
        student, teacher = matched(*pair)
        shortfall = torch.where(teacher > 0, margin - student, margin + student).relu()
        layers.append(shortfall.square().flatten(1).sum(1))
    return 3 / 1000 * later_layers_count_more(layers)


def later_layers_count_more(layers: Sequence[Tensor]) -> Tensor:
    return torch.stack([value / 2**later for later, value in enumerate(reversed(layers))]).sum(0)


@LOSSES.register("ab")
class ActivationBoundary(nn.Module):
    """Squared shortfall to the side of the boundary where the teacher is; [N] (Heo et al., arXiv 1811.03233).

    Of the stages' maps before their activation. A convolution and batch norm connect maps of different shapes.
    """

    def __init__(self, setup: Setup, *, margin: float = 1.0) -> None:
        super().__init__()
        if not margin > 0:
            raise UserError(f"ab: margin must be above 0, not {margin}")
        self.margin = margin
        pairs = paired_shapes("ab", setup.student.preacts[1:], setup.teacher.preacts[1:])
        self.connectors = nn.ModuleList(nn.Identity() if s == t else regressor(s, t, relu=False) for s, t in pairs)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        pairs = paired(student.preacts[1:], teacher.preacts[1:])
        connected = [connect(s) for connect, (s, _) in zip(self.connectors, pairs, strict=True)]
        return activation_boundary(connected, [t for _, t in pairs], self.margin)


@METHODS.register("ab", paper="Heo et al., arXiv 1811.03233", year=2018)
def ab(ce: float = 1.0, weight: float = 1.0, margin: float = 1.0, initial: int = 30) -> list[Term]:
    """Activation boundaries (Heo et al. 2019): initial epochs of them alone, then cross entropy alone."""
    boundaries = Term("ab", weight, options={"margin": margin}, initial=initial, main=False)
    return [Term("cross_entropy", ce), boundaries]
