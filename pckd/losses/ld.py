from __future__ import annotations

from torch import Tensor

from pckd.ops import above_zero, full
from registry import LOSSES, METHODS, NotApplicable, Setup, Term

BINS = 17
"""Of GFL's distributions: 0 to 16 strides."""


def check(setup: Setup, *, temperature: float) -> None:
    """Refuse networks that give no distributions, or other ones."""
    above_zero("ld", "temperature")(setup, temperature=temperature)
    bins = setup.student.sides, setup.teacher.sides
    if not bins[0] or bins[0] != bins[1]:
        raise NotApplicable(
            f"ld needs two networks whose Output.sides have as many bins, not {bins[0]} and {bins[1]}: torchvision's "
            "detectors give boxes without a distribution; crosskd serves FCOS and RetinaNet"
        )


# The claims keep the whole output: an engine that leaves maps out may give nothing but logits and embedding.
@LOSSES.register("ld", check=check, needs=("sides",), reads_maps=True, reads_rows=True)
def localization_distillation(student_sides: Tensor, teacher_sides: Tensor, temperature: float = 10.0) -> Tensor:
    """Localization distillation: KL of where each side of a box is; [N] (Zheng et al., arXiv 2102.12252).

    It needs a detector that gives a distribution for each side in ``Output.sides``, as GFL does; none of torchvision's
    does. The released code weights boxes by the student's score, and adds those near objects; here each row counts
    alike, and rows="foreground" are those of an object.

    Args:
        student_sides: [N, 4, bins], logits of the four sides. teacher_sides: likewise; constant.
        temperature: above 0.

    Returns:
        [N]: T^2 times the mean divergence of the sides.
    """
    student = (full(student_sides) / temperature).log_softmax(-1)
    teacher = (full(teacher_sides.detach()) / temperature).log_softmax(-1)
    return (teacher.exp() * (teacher - student)).sum(-1).mean(-1) * temperature**2


@METHODS.register("ld", paper="Zheng et al., arXiv 2102.12252", year=2022)
def ld(ce: float = 1.0, weight: float = 0.25 / BINS, temperature: float = 10.0) -> list[Term]:
    """Localization distillation (Zheng et al. 2022): a supervised term plus distributions of the sides of boxes.

    The released 0.25 divides by the number of bins, too.
    """
    return [Term("cross_entropy", ce), Term("ld", weight, rows="foreground", options={"temperature": temperature})]
