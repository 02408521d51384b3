from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from pckd.functional.connectors import regressor
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


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
        pairs = functional.paired_shapes("ab", setup.student.preacts[1:], setup.teacher.preacts[1:])
        self.connectors = nn.ModuleList(nn.Identity() if s == t else regressor(s, t, relu=False) for s, t in pairs)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        pairs = functional.paired(student.preacts[1:], teacher.preacts[1:])
        connected = [connect(s) for connect, (s, _) in zip(self.connectors, pairs, strict=True)]
        return functional.activation_boundary(connected, [t for _, t in pairs], self.margin)


@METHODS.register("ab", paper="Heo et al., arXiv 1811.03233", year=2018)
def ab(ce: float = 1.0, weight: float = 1.0, margin: float = 1.0, initial: int = 30) -> list[Term]:
    """Activation boundaries (Heo et al. 2019): initial epochs of them alone, then cross entropy alone."""
    boundaries = Term("ab", weight, options={"margin": margin}, initial=initial, main=False)
    return [Term("cross_entropy", ce), boundaries]
