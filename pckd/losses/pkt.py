from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term


@LOSSES.register("pkt")
class ProbabilisticTransfer(nn.Module):
    """Who is near whom in the batch, as probabilities; [N] (Passalis and Tefas, arXiv 1803.10837)."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.pkt(student.embedding, teacher.embedding)


@METHODS.register("pkt", paper="Passalis and Tefas, arXiv 1803.10837", year=2018)
def pkt_method(ce: float = 1.0, weight: float = 30000.0) -> list[Term]:
    """Probabilistic knowledge transfer (Passalis and Tefas 2018): cross entropy plus neighborhoods of embeddings."""
    return [Term("cross_entropy", ce), Term("pkt", weight)]
