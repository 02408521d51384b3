from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term


@LOSSES.register("sp")
class SimilarityPreserving(nn.Module):
    """Difference of each sample's similarities to the batch, in the last map; [N] (Tung & Mori, arXiv 1907.09682)."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        functional.paired_shapes("sp", setup.student.maps, setup.teacher.maps)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.similarity_preserving(student.maps[-1], teacher.maps[-1])


@METHODS.register("sp", paper="Tung & Mori, arXiv 1907.09682", year=2019)
def sp(ce: float = 1.0, weight: float = 3000.0) -> list[Term]:
    """Similarity-preserving distillation (Tung and Mori 2019): cross entropy plus similarities within the batch."""
    return [Term("cross_entropy", ce), Term("sp", weight)]
