"""Predictions aligned at the level of instance, batch and class (Jin et al., Multi-Level Logit Distillation, 2023).

Shapes: N rows, K classes. Each level is summed over several temperatures ("prediction augmentation").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pckd.losses.kd import kd
from pckd.ops import above_zero, exact, full
from registry import LOSSES, METHODS, Context, Term

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
"""As published for CIFAR-100."""


def instance_alignment(
    student_logits: Tensor, teacher_logits: Tensor, temperatures: Sequence[float] = TEMPERATURES
) -> Tensor:
    """Instance level, L_ins: KD summed over temperatures; [N] (Jin et al., CVPR 2023).

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. temperatures: at least one.
    """
    return torch.stack([kd(student_logits, teacher_logits, temperature) for temperature in temperatures]).sum(0)


def batch_alignment(
    student_logits: Tensor, teacher_logits: Tensor, temperatures: Sequence[float] = TEMPERATURES
) -> Tensor:
    """Batch level, L_batch: squared difference of the Gram matrices P P^T; [N] (Jin et al., CVPR 2023).

    Row i sums over the samples that i is compared with, so that the mean is the published loss
    ||P_s P_s^T - P_t P_t^T||^2 / N, summed over temperatures. The arguments are those of :func:`instance_alignment`.
    """
    return _alignment(student_logits, teacher_logits, temperatures, lambda p: p @ p.T)


def class_alignment(
    student_logits: Tensor, teacher_logits: Tensor, temperatures: Sequence[float] = TEMPERATURES
) -> Tensor:
    """Class level, L_class: squared difference of the matrices P^T P; [K] (Jin et al., CVPR 2023).

    One value a class, whose mean is the published loss ||P_s^T P_s - P_t^T P_t||^2 / K, summed over temperatures. The
    arguments are those of :func:`instance_alignment`.
    """
    return _alignment(student_logits, teacher_logits, temperatures, lambda p: p.T @ p)


def _alignment(
    student_logits: Tensor, teacher_logits: Tensor, temperatures: Sequence[float], gram: Callable[[Tensor], Tensor]
) -> Tensor:
    """Squared differences of the rows of two Gram matrices of probabilities, summed over temperatures."""
    with exact(student_logits):
        per_temperature = []
        for temperature in temperatures:
            logits = (student_logits, teacher_logits.detach())
            student, teacher = ((full(x) / temperature).softmax(-1) for x in logits)
            per_temperature.append((gram(student) - gram(teacher)).square().sum(1))
        return torch.stack(per_temperature).sum(0)


def unsure_share(teacher_logits: Tensor, per_class: bool = False) -> Tensor:
    """Share of the images (or classes) of which the teacher is at most as sure as of the median one: about a half.

    Jin et al.'s released code masks by this, but on losses already reduced to a scalar, so that the mask acts as its
    mean. A scalar in (0, 1], without gradient.

    Args:
        teacher_logits: [N, K]. per_class: whether to compare classes, by their summed probability, instead of
            images, by their highest.
    """
    probability = full(teacher_logits.detach()).softmax(-1)
    sure = probability.sum(0) if per_class else probability.amax(-1)
    return (sure <= sure.quantile(0.5)).to(sure.dtype).mean()


OTHERS = (2.0, 3.0, 5.0, 6.0)
"""The temperatures beside the base temperature."""
BASE = 4.0
"""The base temperature."""
CHECK = above_zero("mld", "temperature")


@LOSSES.register("mld_instance", check=CHECK, softmax=True)
def mld_instance(student_logits: Tensor, teacher_logits: Tensor, context: Context, temperature: float = BASE) -> Tensor:
    """KD at several temperatures, on a weak and a strong view; [N] (Jin et al., CVPR 2023, as released).

    The weak view counts at every temperature by the share of images that the confidence mask keeps, and fully at
    2 and 6; the strong view counts at the base temperature, 3 and 5.
    """
    views, logits = context.views, (student_logits, teacher_logits)
    share = unsure_share(teacher_logits.unflatten(0, (-1, views))[:, : views - context.strong].flatten(0, 1))
    weak = share * instance_alignment(*logits, (temperature, *OTHERS))
    weak = weak + instance_alignment(*logits, (2.0, 6.0))
    if not context.strong:
        return weak
    strong = instance_alignment(*logits, (temperature, 3.0, 5.0))
    is_last = torch.arange(len(weak), device=weak.device) % views == views - 1
    return torch.where(is_last, strong, weak)


@LOSSES.register("mld_batch", check=CHECK, compares_rows=True, softmax=True)
def mld_batch(student_logits: Tensor, teacher_logits: Tensor, temperature: float = BASE) -> Tensor:
    """Squared difference of the samples' similarities, at several temperatures; [N] (Jin et al., CVPR 2023)."""
    return unsure_share(teacher_logits) * batch_alignment(student_logits, teacher_logits, (temperature, *OTHERS))


@LOSSES.register("mld_class", check=CHECK, per_sample=False, softmax=True)
def mld_class(student_logits: Tensor, teacher_logits: Tensor, temperature: float = BASE) -> Tensor:
    """Squared difference of the classes' correlations, at several temperatures; scalar (Jin et al., CVPR 2023)."""
    share = unsure_share(teacher_logits, per_class=True)
    return share * class_alignment(student_logits, teacher_logits, (temperature, *OTHERS)).mean()


@METHODS.register("mld", paper="Jin et al., Multi-Level Logit Distillation, CVPR", year=2023)
def mld(ce: float = 0.1, weight: float = 0.9, temperature: float = BASE, standardize: bool = False) -> list[Term]:
    """Multi-level logit distillation (Jin et al. 2023), as released: instance, batch and class level.

    The student sees each of the two views in a pass of its own, and its running statistics count both. The gradient of
    a step is the released one to 2e-16, the statistics to the last bit, and the operations of the strong view to
    rounding. Five pairs of different families were published with 480 or 960 epochs; a run says so.

    Args:
        ce: weight of the cross entropy on each of the two views.
        weight: of each level. The terms on both views have twice their weight, as the mean over two views is half
            of the published sum.
        temperature: the base temperature; 2, 3, 5 and 6 are used beside it.
        standardize: whether the logits of the instance level are standardized first (Sun et al., arXiv 2403.01427):
            published with temperature 2 and weight 6 or 9.
    """
    options = {"temperature": temperature}
    return [
        Term("cross_entropy", 2 * ce, views="strong"),
        Term("mld_instance", 2 * weight, views="strong", options=options, standardize=standardize),
        Term("mld_batch", weight, options=options),
        Term("mld_class", weight, options=options),
    ]
