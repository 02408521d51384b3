from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term


@LOSSES.register("fsp")
class FlowOfSolution(nn.Module):
    """Squared difference of the matrices between consecutive maps, stem included; [N] (Yim et al., CVPR 2017)."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        functional.paired_shapes("fsp", setup.student.maps, setup.teacher.maps, least=2, same_widths=True)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.fsp(student.maps, teacher.maps)


@METHODS.register("fsp", paper="Yim et al., CVPR 2017", year=2017)
def fsp(
    ce: float = 1.0, weight: float = 50.0, initial: int = 30, initial_weight: float = 1.0, main: bool = False
) -> list[Term]:
    """Flow of the solution procedure (Yim et al. 2017): initial epochs of it alone, then cross entropy alone.

    Args:
        ce: weight of the cross entropy.
        weight: of the term in the schedule, where ``main=True`` keeps it there. The published command has 50 and its
            code no such term: its initial epochs are not weighted, and with 50 they can diverge.
        initial: epochs, of 240, before the schedule. initial_weight: weight in them.
        main: whether the term also acts in the schedule.
    """
    flows = Term("fsp", weight, initial=initial, initial_weight=initial_weight, main=main)
    return [Term("cross_entropy", ce), flows]
