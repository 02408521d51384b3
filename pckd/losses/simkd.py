from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.maps import read_map, read_shape
from pckd.ops import mean_square
from registry import LOSSES, METHODS, Context, NotApplicable, Output, Setup, Term, UserError


def reused_feature(projected_map: Tensor, teacher_map: Tensor) -> Tensor:
    """L_SimKD: mean squared difference of the projected and the teacher's map; [N] (Chen et al., arXiv 2203.14001).

    Args:
        projected_map: [N, Ct, H, W], the student's last map after the projector.
        teacher_map: [N, Ct, H, W], its last; constant.

    Raises:
        ValueError: the shapes differ.
    """
    return mean_square(projected_map, teacher_map, "reused_feature")


@LOSSES.register("simkd")
class ReusedClassifier(nn.Module):
    """Squared error of the projected last map; the teacher's classifier answers; [N] (Chen et al., arXiv 2203.14001).

    The projector is Conv2d(1x1), Conv2d(3x3), Conv2d(1x1), each with BatchNorm2d and ReLU, at 1 / factor of the
    teacher's width in between. The larger of the two maps is averaged to the size of the smaller one.
    """

    reads_rows = True

    def __init__(self, setup: Setup, *, factor: int = 2) -> None:
        super().__init__()
        student, teacher = (read_shape(shapes) for shapes in setup[:2])
        if student is None or teacher is None:
            who = "student" if student is None else "teacher"
            raise NotApplicable(
                f"simkd needs the map that the {who}'s classifier reads, but the {who} does not return it; "
                "srrl works for any network"
            )
        wide, narrow = teacher[0], teacher[0] // factor if factor > 0 else 0
        if not narrow:
            raise UserError(f"simkd: factor must be between 1 and the teacher's {wide} channels, not {factor}")
        self.size = min(student[1], teacher[1]), min(student[2], teacher[2])
        steps = ((student[0], narrow, 1), (narrow, narrow, 3), (narrow, wide, 1))
        layers = [
            (nn.Conv2d(i, o, size, padding=size // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU()) for i, o, size in steps
        ]
        self.projector = nn.Sequential(*(layer for step in layers for layer in step))
        self.classifier = setup.frozen_classifier()

    def shrink(self, output: Output) -> Tensor:
        read = read_map(output)
        assert read is not None
        return read if read.shape[2:] == self.size else F.adaptive_avg_pool2d(read, self.size)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return reused_feature(self.projector(self.shrink(student)), self.shrink(teacher))

    def predict(self, student: Output) -> Tensor:
        logits: Tensor = self.classifier(self.projector(self.shrink(student)).mean((2, 3)))
        return logits


@METHODS.register("simkd", paper="Chen et al., arXiv 2203.14001", year=2022)
def simkd(ce: float = 0.0, weight: float = 1.0, factor: int = 2) -> list[Term]:
    """SimKD, the reused teacher classifier (Chen et al. 2022): features alone are learned, without labels.

    Args:
        ce: weight of a cross entropy of the student's own classifier, which does not answer; 0 as published.
        weight: of the feature loss. factor: by how much the projector narrows the teacher's width.
    """
    return [Term("cross_entropy", ce), Term("simkd", weight, options={"factor": factor})]
