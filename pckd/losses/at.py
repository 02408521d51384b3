from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


@LOSSES.register("at")
class AttentionTransfer(nn.Module):
    """Squared difference of the stages' attention maps; [N] (Zagoruyko & Komodakis, arXiv 1612.03928)."""

    def __init__(self, setup: Setup, *, p: float = 2.0) -> None:
        super().__init__()
        functional.paired_shapes("at", setup.student.maps[1:], setup.teacher.maps[1:])
        if not p >= 1:
            raise UserError(f"at: p must be at least 1, not {p}")
        self.p = p

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.attention_transfer(student.maps[1:], teacher.maps[1:], self.p)


@METHODS.register("at", paper="Zagoruyko & Komodakis, arXiv 1612.03928", year=2016)
def at(ce: float = 1.0, weight: float = 1000.0, p: float = 2.0) -> list[Term]:
    """Attention transfer (Zagoruyko and Komodakis 2017): cross entropy plus attention maps of the stages."""
    return [Term("cross_entropy", ce), Term("at", weight, options={"p": p})]
