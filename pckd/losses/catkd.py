from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.maps import read_map_at, read_shape_at
from pckd.ops import NORM_FLOOR, exact, full, mean_square
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


def class_attention(feature_map: Tensor, centers: Tensor, resolution: int = 2, normalized: bool = False) -> Tensor:
    """Class activation maps: what each cell adds to each logit, averaged on a grid; [N, K, resolution, resolution].

    Args:
        feature_map: [N, D, H, W], the map whose mean the classifier reads. centers: [K, D], the classifier's rows.
        resolution: of the grid. normalized: scale the map of each class to length 1.
    """
    # The average of a linear map is the linear map of the average, which is cheaper.
    pooled = F.adaptive_avg_pool2d(full(feature_map), resolution)
    with exact(pooled):
        maps = F.conv2d(pooled, full(centers)[:, :, None, None])
    return F.normalize(maps.flatten(2), dim=2, eps=NORM_FLOOR).view_as(maps) if normalized else maps


def class_attention_transfer(
    student_map: Tensor,
    teacher_map: Tensor,
    student_centers: Tensor,
    teacher_centers: Tensor,
    resolution: int = 2,
    normalized: bool = False,
) -> Tensor:
    """Mean squared difference of the :func:`class_attention` of both networks; [N] (Guo et al., arXiv 2304.12777).

    Args:
        student_map: [N, Ds, H, W]. teacher_map: [N, Dt, H', W']; constant. student_centers: [K, Ds].
        teacher_centers: [K, Dt]; constant. resolution, normalized: see :func:`class_attention`.
    """
    student = class_attention(student_map, student_centers, resolution, normalized)
    teacher = class_attention(teacher_map.detach(), teacher_centers.detach(), resolution, normalized)
    return mean_square(student, teacher, "class_attention_transfer")


@LOSSES.register("catkd")
class ClassAttention(nn.Module):
    """Which parts of the image speak for each class, as the teacher sees it; [N] (Guo et al., arXiv 2304.12777).

    The classifier's rows are the centers of the run's center rule, by default these rows themselves; without a bias, as
    released. Gradient flows into the student's.

    Args:
        resolution: of the class activation maps, which are averaged to it.
        normalized: scale the map of each class to length 1.
        student, teacher: path of the module that gives the map whose mean the classifier reads, before its ReLU; by
            default it is among the network's maps.
    """

    reads_rows = True

    @classmethod
    def claims(cls, *, student: str = "", teacher: str = "", **_: Any) -> Any:
        return type("Claims", (cls,), {"reads_layers": bool(student or teacher)})

    def __init__(
        self, setup: Setup, *, resolution: int = 2, normalized: bool = False, student: str = "", teacher: str = ""
    ) -> None:
        super().__init__()
        if resolution < 1:
            raise UserError(f"catkd: resolution must be 1 or above, not {resolution}")
        self.resolution, self.normalized, self.paths = resolution, normalized, (student, teacher)
        read_shape_at("catkd", "student", setup.student, student)
        read_shape_at("catkd", "teacher", setup.teacher, teacher)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        maps = read_map_at(student, self.paths[0]), read_map_at(teacher, self.paths[1])
        centers = context.centers.student, context.centers.teacher
        return class_attention_transfer(*maps, *centers, self.resolution, self.normalized)


@METHODS.register("catkd", paper="Guo et al., arXiv 2304.12777", year=2023)
def catkd(
    ce: float = 1.0,
    weight: float = 15.0,
    resolution: int = 2,
    normalized: bool = False,
    student: str = "",
    teacher: str = "",
) -> list[Term]:
    """Class attention transfer (Guo et al. 2023): cross entropy plus class activation maps.

    ``catkd(ce=0)`` is the paper's CAT. The release trains networks whose classifier has no bias. Options as of the loss
    ``catkd``; of MobileNetV2 the student's module is ``"conv2"``, of ShuffleV2 ``"bn2"``.
    """
    paths = {role: path for role, path in (("student", student), ("teacher", teacher)) if path}
    options = {"resolution": resolution, "normalized": normalized, **paths}
    return [Term("cross_entropy", ce), Term("catkd", weight, options=options)]
