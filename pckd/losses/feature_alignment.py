from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, Context, Output, Setup


@LOSSES.register("feature_alignment")
class FeatureAlignment(nn.Module):
    """2 - 2 cos between the projected student embedding and the teacher's; [N] (PCKD, arXiv 2410.14143, L_FA).

    The projection P is Linear(Ds, expansion * Dt), BatchNorm1d, ReLU, Linear(expansion * Dt, Dt).
    """

    def __init__(self, setup: Setup, *, expansion: int = 16) -> None:
        super().__init__()
        width = expansion * setup.teacher.embedding
        self.projection = nn.Sequential(
            nn.Linear(setup.student.embedding, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, setup.teacher.embedding),
        )

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.feature_alignment(self.projection(student.embedding), teacher.embedding)
