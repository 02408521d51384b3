from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.feature_alignment import feature_alignment
from pckd.ops import full
from registry import LOSSES, Context, Output, Setup, UserError

INHERITED = ("layers", "centers", "nothing")


@LOSSES.register("direct_alignment")
class DirectAlignment(nn.Module):
    """2 - 2 cos between the student's embedding itself and the teacher's; [N] (ours; L_FA without its projection).

    Where the widths differ, neighboring channels of the student are averaged to as many as the teacher has (a narrower
    student's are repeated). Nothing of that is learned, and what is not negative stays so, as the teacher's embedding
    is: through a learned linear map alignment cost accuracy. Before the first step the student may inherit from the
    teacher.

    Args:
        inherit: ``"centers"``: the student's centers start as the teacher's, through the averaging, so that an
            embedding that is aligned gives the teacher's logits from then on. ``"layers"``: so do also all layers of
            the same name and shape, batch norms with their statistics: a student of the teacher's family starts as a
            teacher with fewer blocks (as in DistilBERT, arXiv 1910.01108). ``"nothing"``.
    """

    reads_maps = False

    def __init__(self, setup: Setup, *, inherit: str = "layers") -> None:
        super().__init__()
        if inherit not in INHERITED:
            raise UserError(f"direct_alignment: inherit must be one of {', '.join(INHERITED)}, not {inherit!r}")
        self.inherit = inherit
        self.width = setup.teacher.embedding

    def start(self, student: nn.Module, teacher: nn.Module) -> None:
        own, theirs = student.classifier, teacher.classifier
        assert isinstance(own, nn.Linear)
        assert isinstance(theirs, nn.Linear)
        if self.inherit == "layers":
            layers = teacher.state_dict()
            for name, value in student.state_dict().items():
                if name in layers and layers[name].shape == value.shape:
                    value.copy_(layers[name])
        if self.inherit != "nothing":
            # Centers W of the teacher and the averaging A: W (A e) = (W A) e.
            averaging = self.average(torch.eye(own.in_features, device=theirs.weight.device)).T
            own.weight.copy_(theirs.weight @ averaging)
            if own.bias is not None:
                own.bias.copy_(torch.zeros_like(own.bias) if theirs.bias is None else theirs.bias)

    def average(self, embedding: Tensor) -> Tensor:
        """Rows [N, Ds] at the teacher's width [N, Dt]."""
        return embedding if embedding.shape[1] == self.width else F.adaptive_avg_pool1d(full(embedding), self.width)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return feature_alignment(self.average(student.embedding), teacher.embedding)
