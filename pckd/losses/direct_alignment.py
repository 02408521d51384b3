from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.feature_alignment import feature_alignment
from pckd.ops import full
from registry import LOSSES, Context, NotApplicable, Output, Setup, UserError

INHERITED = ("layers", "blocks", "centers", "nothing")


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
            teacher with fewer blocks (as in DistilBERT, arXiv 1910.01108). ``"blocks"``: likewise, and where the
            teacher has more blocks in a row, the student's are evenly spread over them, the first and the last among
            them: blocks 0, 4 and 8 of nine. Every layer of the student must have one. ``"nothing"``.
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
        layers: dict[str, Tensor] = teacher.state_dict()
        names: dict[str, str] = {}
        if self.inherit == "blocks":
            names = _slice(student, teacher)
        elif self.inherit == "layers":
            names = dict(zip(layers, layers, strict=True))
        for name, value in student.state_dict().items():
            other = layers.get(names.get(name, ""))
            if other is not None and other.shape == value.shape:
                value.copy_(other)
        if self.inherit != "nothing":
            # Centers W of the teacher and the averaging A: W (A e) = (W A) e.
            averaging = self.average(torch.eye(own.in_features, device=theirs.weight.device)).T
            own.weight.copy_(theirs.weight @ averaging)
            if own.bias is not None:
                own.bias.copy_(torch.zeros_like(own.bias) if theirs.bias is None else theirs.bias)

    def check_start(self, student: nn.Module, teacher: nn.Module) -> None:
        if self.inherit == "blocks":
            _slice(student, teacher)

    def average(self, embedding: Tensor) -> Tensor:
        """Rows [N, Ds] at the teacher's width [N, Dt]."""
        return embedding if embedding.shape[1] == self.width else F.adaptive_avg_pool1d(full(embedding), self.width)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return feature_alignment(self.average(student.embedding), teacher.embedding)


def _slice(student: nn.Module, teacher: nn.Module) -> dict[str, str]:
    """The teacher's name of each tensor of the student, but for its classifier.

    Raises:
        NotApplicable: the student is no slice of the teacher.
    """
    own, theirs = student.state_dict(), teacher.state_dict()
    classifier = student.classifier
    assert isinstance(classifier, nn.Linear)
    centers = {parameter.data_ptr() for parameter in classifier.parameters()}
    names = {name: _counterpart(name, own, theirs) for name, value in own.items() if value.data_ptr() not in centers}
    for name, other in names.items():
        if other not in theirs or theirs[other].shape != own[name].shape:
            found = f"is {list(theirs[other].shape)}" if other in theirs else "is not there"
            raise NotApplicable(
                f"direct_alignment: the student is no slice of the teacher, whose {other} for the student's {name} "
                f"{list(own[name].shape)} {found}; use inherit='layers', 'centers' or 'nothing'"
            )
    return names


def _counterpart(name: str, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """The teacher's name for a name of the student: of numbered parts another number, where it has more of them."""
    mine = other = ""
    for part in name.split("."):
        at = part
        if part.isdigit():
            few, many = _numbers(own, mine), _numbers(theirs, other)
            if few and len(few) <= len(many):
                at = str(many[round(few.index(int(part)) * (len(many) - 1) / max(len(few) - 1, 1))])
        mine, other = f"{mine}{part}.", f"{other}{at}."
    return other[:-1]


def _numbers(names: Mapping[str, Tensor], prefix: str) -> list[int]:
    """The numbers that follow a prefix."""
    parts = {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}
    return sorted(int(part) for part in parts if part.isdigit())
