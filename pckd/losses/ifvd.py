from __future__ import annotations

import torch
from torch import Tensor, nn

from pckd.losses.levels import FEATURES, labels_at, level_shapes, of_level
from pckd.losses.maps import matched, paired
from pckd.ops import exact, unit
from registry import LOSSES, METHODS, Context, Output, Setup, Term


def to_prototypes(feature_map: Tensor, member: Tensor) -> Tensor:
    """Cosine similarity of each cell with its class's mean feature in the same image, [B, P]; 1 without a class.

    Args:
        feature_map: [B, C, H, W], P = H * W. member: [B, P, K], 1 for the class of each cell, else 0.
    """
    cells = feature_map.flatten(2).transpose(1, 2)
    with exact(cells):
        means = member.transpose(1, 2) @ cells / member.sum(1).clamp_min(1)[..., None]
        similarity = (unit(cells) * unit(member @ means)).sum(2)
    return torch.where(member.any(2), similarity, 1.0)


def intra_class_variation(student_map: Tensor, teacher_map: Tensor, pixels: Tensor, num_classes: int) -> Tensor:
    """Intra-class feature variation (Wang et al., ECCV 2020): how far each cell is from its class's mean feature.

    Args:
        student_map: [B, Cs, Hs, Ws]. teacher_map: [B, Ct, Ht, Wt]; constant. Of two sizes the larger is average
            pooled. pixels: [B, H, W], the class of each pixel, 0 to K - 1; another value is ignored, and such a cell
            counts as one of no difference, as published. num_classes: K.

    Returns:
        [B]: mean squared difference of the similarities over the cells.
    """
    student_map, teacher_map = matched(student_map, teacher_map)
    labels = labels_at(pixels, student_map.shape[2:]).flatten(1)
    member = (labels[..., None] == torch.arange(num_classes, device=labels.device)).to(student_map.dtype)
    return (to_prototypes(student_map, member) - to_prototypes(teacher_map, member)).square().mean(1)


@LOSSES.register("ifvd")
class IFVD(nn.Module):
    """Difference of how features vary within their class, of one level; [B] (IFVD, Wang et al., ECCV 2020).

    In segmentation level -2 are the features. The adversarial part of the released code is not here.
    """

    needs = ("pixels",)

    def __init__(self, setup: Setup, *, level: int = FEATURES) -> None:
        super().__init__()
        setup.require("pixels", "ifvd")
        level_shapes("ifvd", setup, level)
        self.level, self.num_classes = level, setup.student.num_classes

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        (pair,) = of_level(paired(student.maps, teacher.maps), self.level)
        return intra_class_variation(*pair, context.pixels, self.num_classes)


@METHODS.register("ifvd", paper="Wang et al., ECCV 2020", year=2020)
def ifvd(ce: float = 1.0, kd: float = 1.0, weight: float = 20.0) -> list[Term]:
    """Intra-class feature variation (Wang et al. 2020): a supervised term, KD by pixel and variation in classes.

    The weights are those of CIRKD's benchmark on DeepLabV3. The authors' own code has 10 and 200 for PSPNet, where KD
    is averaged over the classes, too.
    """
    terms = [Term("cross_entropy", ce), Term("kd", kd, options={"temperature": 1.0})]
    return [*terms, Term("ifvd", weight, rows="images")]
