from __future__ import annotations

from torch import Tensor, nn

from pckd import functional
from pckd.functional.connectors import regressor
from registry import LOSSES, METHODS, Context, NotApplicable, Output, Setup, Term


@LOSSES.register("fitnet")
class FitNet(nn.Module):
    """Mean squared difference of one pair of maps, the student's after a regressor; [N] (FitNets, arXiv 1412.6550).

    Maps are paired from the last backwards; ``hint_layer`` counts the pairs from the earliest, which is 0 (the stems,
    where both networks have as many maps).
    """

    def __init__(self, setup: Setup, *, hint_layer: int = 2) -> None:
        super().__init__()
        pairs = functional.paired_shapes("fitnet", setup.student.maps, setup.teacher.maps)
        if not 0 <= hint_layer < len(pairs):
            raise NotApplicable(f"fitnet: hint_layer={hint_layer}, but this pair has layers 0 to {len(pairs) - 1}")
        self.hint_layer = hint_layer
        self.regressor = regressor(*pairs[hint_layer], relu=True)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        hinted, hint = functional.paired(student.maps, teacher.maps)[self.hint_layer]
        return functional.hint(self.regressor(hinted), hint)


@METHODS.register("fitnet", paper="Romero et al., arXiv 1412.6550", year=2014)
def fitnet(ce: float = 1.0, weight: float = 100.0, hint_layer: int = 2) -> list[Term]:
    """FitNets (Romero et al. 2015): cross entropy plus a hint, trained together as in CRD's benchmark."""
    return [Term("cross_entropy", ce), Term("fitnet", weight, options={"hint_layer": hint_layer})]
