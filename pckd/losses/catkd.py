from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.maps import read_map, read_shape
from pckd.ops import NORM_FLOOR, exact, full, mean_square
from registry import LOSSES, METHODS, Context, NotApplicable, Output, Setup, Shapes, Term, UserError


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
    return F.normalize(maps, dim=(2, 3), eps=NORM_FLOOR) if normalized else maps


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

    @staticmethod
    def claims(*, student: str = "", teacher: str = "", **_: Any) -> Any:
        return type("Claims", (), {"reads_layers": bool(student or teacher), "reads_rows": True})

    def __init__(
        self, setup: Setup, *, resolution: int = 2, normalized: bool = False, student: str = "", teacher: str = ""
    ) -> None:
        super().__init__()
        if resolution < 1:
            raise UserError(f"catkd: resolution must be 1 or above, not {resolution}")
        self.resolution, self.normalized, self.paths = resolution, normalized, (student, teacher)
        for role, path in zip(("student", "teacher"), self.paths, strict=True):
            shapes: Shapes = getattr(setup, role)
            shape = dict(shapes.layers).get(path) if path else read_shape(shapes)
            if shape is None or len(shape) != 3 or shape[0] != shapes.embedding:
                raise NotApplicable(
                    f"catkd needs the map whose mean the {role}'s classifier reads, [{shapes.embedding}, H, W] an "
                    f"image, and {f'{path!r} gives {list(shape or [])}' if path else 'it is not among its maps'}; "
                    f"name its module: catkd({role}='...')"
                )

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        maps = [
            output.layers[path].relu() if path and isinstance(output.layers, Mapping) else read_map(output)
            for output, path in zip((student, teacher), self.paths, strict=True)
        ]
        assert maps[0] is not None
        assert maps[1] is not None
        centers = context.centers.student, context.centers.teacher
        return class_attention_transfer(maps[0], maps[1], *centers, self.resolution, self.normalized)


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
