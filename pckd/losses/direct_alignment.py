from __future__ import annotations

import torch
from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, Context, Output, Setup, UserError

INHERITED = ("layers", "centers", "nothing")


@LOSSES.register("direct_alignment")
class DirectAlignment(nn.Module):
    """2 - 2 cos between the student's embedding itself and the teacher's; [N] (ours; L_FA without its projection).

    Where the widths differ, one linear map without bias, orthogonal at first, takes the student's embedding to the
    teacher's width. Before the first step the student may inherit from the teacher.

    Args:
        inherit: ``"layers"``: all layers of the same name and shape start as the teacher's, batch norms with their
            statistics: a student of the teacher's family starts as a teacher with fewer blocks (as in DistilBERT, arXiv
            1910.01108). Where the widths agree that includes the centers, so that an embedding that is aligned gives
            the teacher's logits from then on. ``"centers"``: the centers alone; where the widths differ, through the
            map, which is random at first. ``"nothing"``.
    """

    def __init__(self, setup: Setup, *, inherit: str = "layers") -> None:
        super().__init__()
        if inherit not in INHERITED:
            raise UserError(f"direct_alignment: inherit must be one of {', '.join(INHERITED)}, not {inherit!r}")
        self.inherit = inherit
        student, teacher = setup.student.embedding, setup.teacher.embedding
        self.map = nn.Identity() if student == teacher else nn.Linear(student, teacher, bias=False)
        if isinstance(self.map, nn.Linear):
            nn.init.orthogonal_(self.map.weight)

    def start(self, student: nn.Module, teacher: nn.Module) -> None:
        own, theirs = student.classifier, teacher.classifier
        assert isinstance(own, nn.Linear)
        assert isinstance(theirs, nn.Linear)
        if self.inherit == "layers":
            centers = {name for name, value in student.named_parameters() if value is own.weight or value is own.bias}
            layers = teacher.state_dict()
            for name, value in student.state_dict().items():
                if name not in centers and name in layers and layers[name].shape == value.shape:
                    value.copy_(layers[name])
        if self.inherit == "centers" or (self.inherit == "layers" and own.weight.shape == theirs.weight.shape):
            self._inherit_centers(own, theirs)

    def _inherit_centers(self, own: nn.Linear, theirs: nn.Linear) -> None:
        centers = theirs.weight
        if isinstance(self.map, nn.Linear):
            # Centers W of the teacher and the map P: W (P e) = (W P) e.
            centers = centers @ self.map.weight.to(centers)
        own.weight.copy_(centers)
        if own.bias is not None:
            own.bias.copy_(torch.zeros_like(own.bias) if theirs.bias is None else theirs.bias)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return functional.feature_alignment(self.map(student.embedding), teacher.embedding)
