from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term


@LOSSES.register("nst")
class NeuronSelectivity(nn.Module):
    """Maximum mean discrepancy of the channels' patterns, of all stages; [N] (Huang & Wang, arXiv 1707.01219)."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        functional.paired_shapes("nst", setup.student.maps[1:], setup.teacher.maps[1:])

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.nst(student.maps[1:], teacher.maps[1:])


@METHODS.register("nst", paper="Huang & Wang, arXiv 1707.01219", year=2017)
def nst(ce: float = 1.0, weight: float = 50.0) -> list[Term]:
    """Neuron selectivity transfer (Huang and Wang 2017): cross entropy plus the polynomial kernel's discrepancy."""
    return [Term("cross_entropy", ce), Term("nst", weight)]
