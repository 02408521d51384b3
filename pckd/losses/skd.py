from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pckd.losses.levels import FEATURES, level_shapes, of_level
from pckd.losses.maps import matched, paired
from pckd.ops import exact, unit
from registry import LOSSES, METHODS, Setup, Term, UserError


def similarities(feature_map: Tensor, scale: float) -> Tensor:
    """Cosine similarity of each two patches of a map [B, C, H, W], which are max pooled: [B, P, P]."""
    patch = [max(1, int(side * scale)) for side in feature_map.shape[2:]]
    nodes = unit(F.max_pool2d(feature_map, patch, ceil_mode=True).flatten(2).transpose(1, 2))
    with exact(nodes):
        return nodes @ nodes.transpose(1, 2)


def check(setup: Setup, *, scale: float, level: int | None) -> None:
    level_shapes("skd", setup, level)
    if not 0 < scale <= 1:
        raise UserError(f"skd: scale must be above 0 and at most 1, not {scale}")


@LOSSES.register("skd", inputs=("student_maps", "teacher_maps"), check=check)
def pairwise_similarity(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], scale: float = 0.5, level: int | None = FEATURES
) -> Tensor:
    """Pair-wise part of structured knowledge distillation (Liu et al., arXiv 1903.04197): similarities of patches.

    Mean squared difference of the cosine similarities of all pairs of patches; levels are summed. In segmentation
    level -2 are the features. Gradient flows through the lengths, too (released: it does not). The holistic part, a
    discriminator that is trained against the student, is not here.

    Args:
        student_maps: [B, Cs, Hs, Ws] each; teacher_maps: [B, Ct, Ht, Wt] each; constant. Paired from the last
            backwards; of two sizes the larger is average pooled.
        scale: side of a patch over that of the map; 0.5 makes 2 x 2 patches. level: the only one to compare.

    Returns:
        [B].
    """
    levels = []
    for pair in of_level(paired(student_maps, teacher_maps), level):
        student, teacher = (similarities(m, scale) for m in matched(*pair))
        levels.append((student - teacher).square().mean((1, 2)))
    return torch.stack(levels).sum(0)


@METHODS.register("skd", paper="Liu et al., arXiv 1903.04197", year=2019)
def skd(
    ce: float = 1.0, kd: float = 1.0, weight: float = 10.0, scale: float = 0.5, level: int | None = FEATURES
) -> list[Term]:
    """Structured knowledge distillation (Liu et al. 2019): a supervised term, KD by pixel and pairs of patches.

    The weights are those of CIRKD's benchmark on DeepLabV3 (its patches are smaller: 2 x 2 cells). The authors' own
    script has 10 and 0.5 for PSPNet, where KD is summed over the images of a batch.
    """
    pairs = Term("skd", weight, rows="images", options={"scale": scale, "level": level})
    return [Term("cross_entropy", ce), Term("kd", kd, options={"temperature": 1.0}), pairs]
