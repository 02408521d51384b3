from __future__ import annotations

from torch import Tensor, nn

from pckd.losses.maps import matched, paired, paired_shapes, regressor
from registry import LOSSES, METHODS, Context, NotApplicable, Output, Setup, Term


def hint(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """FitNets' hint: mean squared difference; [N] (Romero et al., arXiv 1412.6550, L_HT, equation 3).

    Args:
        student_map: [N, C, Hs, Ws], after the regressor; teacher_map: [N, C, Ht, Wt]; constant. Of two sizes the
            larger is average pooled.
    """
    student, teacher = matched(student_map, teacher_map)
    return (student - teacher).square().flatten(1).mean(1)


@LOSSES.register("fitnet")
class FitNet(nn.Module):
    """Mean squared difference of one pair of maps, the student's after a regressor; [N] (FitNets, arXiv 1412.6550).

    Maps are paired from the last backwards; ``hint_layer`` counts the pairs from the earliest, which is 0 (the stems,
    where both networks have as many maps); by default 2, or the last where there are fewer.
    """

    def __init__(self, setup: Setup, *, hint_layer: int | None = None) -> None:
        super().__init__()
        pairs = paired_shapes("fitnet", setup.student.maps, setup.teacher.maps)
        if hint_layer is None:
            hint_layer = min(2, len(pairs) - 1)
        if not 0 <= hint_layer < len(pairs):
            raise NotApplicable(f"fitnet: hint_layer={hint_layer}, but this pair has layers 0 to {len(pairs) - 1}")
        self.hint_layer = hint_layer
        self.regressor = regressor(*pairs[hint_layer], relu=True)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        hinted, target = paired(student.maps, teacher.maps)[self.hint_layer]
        return hint(self.regressor(hinted), target)


@METHODS.register("fitnet", paper="Romero et al., arXiv 1412.6550", year=2014)
def fitnet(ce: float = 1.0, weight: float = 100.0, hint_layer: int | None = None) -> list[Term]:
    """FitNets (Romero et al. 2015): cross entropy plus a hint, trained together as in CRD's benchmark.

    ``hint_layer`` is 2 by default, or the last pair of maps where there are fewer.
    """
    return [Term("cross_entropy", ce), Term("fitnet", weight, options={"hint_layer": hint_layer})]
