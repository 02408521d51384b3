from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from pckd.losses.at import attention
from pckd.losses.fitnet import hint
from pckd.losses.maps import matched, paired_shapes
from registry import LOSSES, METHODS, Context, NotApplicable, Output, Setup, Term


def factor_transfer(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Factor transfer's L_FT (Kim et al., arXiv 1802.04977), as in CRD's benchmark; [N].

    Mean absolute difference over the positions of the two factors' attention maps (p = 2). The paper takes
    the difference of the normalized factors themselves.

    Args:
        student_map: [N, Cs, Hs, Ws], the translator's factor; teacher_map: [N, Ct, Ht, Wt], the paraphraser's;
            constant. Of two sizes the larger is average pooled.
    """
    student, teacher = (attention(m, 2) for m in matched(student_map, teacher_map))
    return (student - teacher).abs().mean(1)


def _stack(layer: type[nn.Module], widths: tuple[int, ...], norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [layer(before, after, 3, padding=1), *([nn.BatchNorm2d(after)] if norm else []), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


@LOSSES.register("ft")
class FactorTransfer(nn.Module):
    """Difference of the factors that two small networks make of the last maps; [N] (Kim et al., arXiv 1802.04977).

    In the initial stage the teacher's paraphraser learns to rebuild its map (mean squared error). In the main one it
    is frozen, and the student's translator is trained: the term needs ``initial`` epochs.
    """

    def __init__(self, setup: Setup, *, rate: float = 0.5) -> None:
        super().__init__()
        ((source, *_), (target, *_)) = paired_shapes("ft", setup.student.maps, setup.teacher.maps)[-1]
        factors = int(target * rate)
        if factors < 1:
            raise NotApplicable(f"ft: rate={rate} of {target} channels leaves no factor; take a larger rate")
        self.paraphraser = _stack(nn.Conv2d, (target, target, factors, factors))
        self.rebuilder = _stack(nn.ConvTranspose2d, (factors, factors, target, target))
        self.translator = _stack(nn.Conv2d, (source, source, factors, factors), norm=True)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        original = teacher.maps[-1].detach()
        if context.stage == "initial":
            return hint(self.rebuilder(self.paraphraser(original)), original)
        with torch.no_grad():
            factor = self.paraphraser(original)
        return factor_transfer(self.translator(student.maps[-1]), factor)


@METHODS.register("ft", paper="Kim et al., arXiv 1802.04977", year=2018)
def ft(
    ce: float = 1.0, weight: float = 200.0, reconstruction: float = 1.0, rate: float = 0.5, initial: int = 30
) -> list[Term]:
    """Factor transfer (Kim et al. 2018): initial epochs for the paraphraser, then cross entropy plus factors.

    As in CRD's benchmark, whose initial steps are the same to the last bit, the initial epochs have a rate of 0.01 for
    resnets and WRNs by name, and the run's own for other students; with another optimizer than SGD always its own.

    Args:
        ce: weight of the cross entropy. weight: of the factors. rate: factors for each channel of the teacher's map.
        initial: epochs, of 240, for the paraphraser. reconstruction: weight of its loss in them.
    """
    factors = Term("ft", weight, options={"rate": rate}, initial=initial, initial_weight=reconstruction)
    return [Term("cross_entropy", ce), factors]
