from __future__ import annotations

import torch
from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError

OTHERS = (2.0, 3.0, 5.0, 6.0)
"""The temperatures beside the base temperature."""


class _Level(nn.Module):
    def __init__(self, setup: Setup, *, temperature: float = 4.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(f"mld: temperature must be above 0, not {temperature}")
        self.temperatures = (temperature, *OTHERS)


@LOSSES.register("mld_instance")
class InstanceLevel(_Level):
    """KD at several temperatures, on a weak and a strong view; [N] (Jin et al., CVPR 2023, as released).

    The weak view counts at every temperature by the share of images that the confidence mask keeps, and fully at
    2 and 6; the strong view counts at the base temperature, 3 and 5.
    """

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        views, logits = context.views, (student.logits, teacher.logits)
        share = functional.unsure_share(teacher.select(views, range(views - context.strong)).logits)
        weak = share * functional.instance_alignment(*logits, self.temperatures)
        weak = weak + functional.instance_alignment(*logits, (2.0, 6.0))
        if not context.strong:
            return weak
        strong = functional.instance_alignment(*logits, (self.temperatures[0], 3.0, 5.0))
        is_last = torch.arange(len(weak), device=weak.device) % views == views - 1
        return torch.where(is_last, strong, weak)


@LOSSES.register("mld_batch")
class BatchLevel(_Level):
    """Squared difference of the samples' similarities, at several temperatures; [N] (Jin et al., CVPR 2023)."""

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        share = functional.unsure_share(teacher.logits)
        return share * functional.batch_alignment(student.logits, teacher.logits, self.temperatures)


@LOSSES.register("mld_class")
class ClassLevel(_Level):
    """Squared difference of the classes' correlations, at several temperatures; scalar (Jin et al., CVPR 2023)."""

    per_sample = False

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        share = functional.unsure_share(teacher.logits, per_class=True)
        return share * functional.class_alignment(student.logits, teacher.logits, self.temperatures).mean()


@METHODS.register("mld", paper="Jin et al., Multi-Level Logit Distillation, CVPR", year=2023)
def mld(ce: float = 0.1, weight: float = 0.9, temperature: float = 4.0) -> list[Term]:
    """Multi-level logit distillation (Jin et al. 2023), as released: instance, batch and class level.

    Args:
        ce: weight of the cross entropy on each of the two views.
        weight: of each level. The terms on both views have twice their weight, as the mean over two views is half
            of the published sum.
        temperature: the base temperature; 2, 3, 5 and 6 are used beside it.
    """
    options = {"temperature": temperature}
    return [
        Term("cross_entropy", 2 * ce, views="strong"),
        Term("mld_instance", 2 * weight, views="strong", options=options),
        Term("mld_batch", weight, options=options),
        Term("mld_class", weight, options=options),
    ]
