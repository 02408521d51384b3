from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.losses.dkd import dkd
from pckd.losses.maps import read_map, read_shape
from pckd.ops import above_zero, exact, full
from registry import LOSSES, METHODS, Context, NotApplicable, Output, Setup, Term, UserError

SCALES = (1, 2, 4)
"""The whole map, its quarters and its sixteenths, as published for networks of different families."""


def region_logits(feature_map: Tensor, centers: Tensor, bias: Tensor | None, scales: Sequence[int] = SCALES) -> Tensor:
    """What the classifier says of each region of a map: [N, R, K], where scale m gives m x m regions, row by row.

    The map is averaged to 4 x 4 cells first, as in the released code.

    Args:
        feature_map: [N, D, H, W], whose mean the classifier reads. centers: [K, D], its weight. bias: [K].
    """
    cells = F.adaptive_avg_pool2d(full(feature_map), 4)
    regions = torch.cat([F.adaptive_avg_pool2d(cells, scale).flatten(2) for scale in scales], dim=2).mT
    with exact(regions):
        return F.linear(regions, full(centers), None if bias is None else full(bias))


def ambiguity(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """2 where the teacher is right of a region and wrong of the whole, or the other way round; 1 elsewhere; [N, R].

    Args:
        teacher_logits: [N, R, K], the first region being the whole. labels: [N], int64.
    """
    right = teacher_logits.argmax(-1) == labels[:, None]
    return 1.0 + (right != right[:, :1])


def _check(setup: Setup, **given: Any) -> None:
    above_zero("sdd", "temperature")(setup, **given)
    scales = given["scales"]
    if not scales or scales[0] != 1 or any(not isinstance(m, int) or not 1 <= m <= 4 for m in scales):
        raise UserError(f"sdd: scales must be numbers of 1 to 4, 1 the first, as in (1, 2, 4), not {scales}")
    for role in ("student", "teacher"):
        if read_shape(getattr(setup, role)) is None:
            raise NotApplicable(
                f"sdd asks the classifier about regions of the map that it reads, and the {role} does not return it; "
                "dkd works"
            )


@LOSSES.register("sdd", check=_check, reads_rows=True)
def sdd(
    student: Output,
    teacher: Output,
    context: Context,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    scales: Sequence[int] = SCALES,
) -> Tensor:
    """Scale decoupled DKD: the mean of :func:`dkd` over regions, ambiguous ones twice; [N] (arXiv 2403.13512).

    Regions are classified by the category centers, which are the classifiers' rows unless a run sets another rule.

    Args:
        alpha, beta, temperature: of :func:`dkd`. scales: see :func:`region_logits`; the first is 1.
    """
    centers, maps = context.centers, (read_map(student), read_map(teacher.detach()))
    assert maps[0] is not None
    assert maps[1] is not None
    ours = region_logits(maps[0], centers.student, centers.student_bias, scales)
    theirs = region_logits(maps[1], centers.teacher, centers.teacher_bias, scales).detach()
    labels = context.labels.repeat_interleave(ours.shape[1])
    values = dkd(ours.flatten(0, 1), theirs.flatten(0, 1), labels, alpha, beta, temperature).view(ours.shape[:2])
    return (ambiguity(theirs, context.labels) * values).mean(1)


@METHODS.register("sdd", paper="Wei et al., arXiv 2403.13512", year=2024)
def sdd_method(
    ce: float = 1.0,
    weight: float = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    scales: Sequence[int] = SCALES,
    warmup: int = 20,
) -> list[Term]:
    """Scale decoupled distillation (Wei et al. 2024), SD-DKD: DKD of the regions of the last map.

    Args:
        ce: weight of the cross entropy. weight: of the distillation term.
        alpha: of the target class in it. beta: of the other classes. temperature: of both.
        scales: which regions: (1, 2, 4) for networks of different families, (1, 2) for those of one.
        warmup: epochs, of 240, over which the distillation term grows to its weight.
    """
    options = {"alpha": alpha, "beta": beta, "temperature": temperature, "scales": tuple(scales)}
    return [Term("cross_entropy", ce), Term("sdd", weight, options=options, warmup=warmup)]
