from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.fitnet import hint
from pckd.losses.maps import matched, paired, paired_shapes
from registry import LOSSES, METHODS, Context, Output, Setup, Term

CONTEXT_SIZES = (4, 2, 1)


def hierarchical_context(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """ReviewKD's hierarchical context loss; [N] (Chen et al., arXiv 2104.09044, HCL).

    Mean squared differences of the maps and of their averages on grids of 4, 2 and 1 (those smaller than the map);
    the map counts 1, each grid half of what precedes it, over their sum. Layers are summed.

    Args:
        student_maps: [N, C, Hs, Ws] each, after the fusion; teacher_maps: [N, C, Ht, Wt] each; constant. Paired from
            the last backwards; of two sizes the larger is average pooled.
    """
    layers = []
    for pair in paired(student_maps, teacher_maps):
        student, teacher = matched(*pair)
        scales = [(student, teacher)]
        for size in CONTEXT_SIZES:
            if size < student.shape[2]:
                scales.append((F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)))
        shares = [2.0**-i for i in range(len(scales))]
        errors = [share * hint(*scale) for share, scale in zip(shares, scales, strict=True)]
        layers.append(torch.stack(errors).sum(0) / sum(shares))
    return torch.stack(layers).sum(0)


WIDEST = 512


class Fusion(nn.Module):
    """Attention-based fusion (ABF): a stage's map with what came down from the later stages."""

    def __init__(self, channels: int, width: int, target: int, last: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.leave = nn.Sequential(nn.Conv2d(width, target, 3, padding=1, bias=False), nn.BatchNorm2d(target))
        self.attend = None if last else nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid())
        for part in (self.enter, self.leave):
            nn.init.kaiming_uniform_(part.get_parameter("0.weight"), a=1)

    def forward(self, own: Tensor, later: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """The map to compare, [N, target, *size], and the one to hand down, [N, width, *size]."""
        fused = self.enter(own)
        if self.attend is not None and later is not None:
            later = F.interpolate(later, fused.shape[2:])
            gates = self.attend(torch.cat([fused, later], 1))
            fused = fused * gates[:, :1] + later * gates[:, 1:]
        fused = F.interpolate(fused, size)
        return self.leave(fused), fused


@LOSSES.register("reviewkd")
class ReviewKD(nn.Module):
    """Hierarchical context loss of the student's stages, each fused with the later ones, and the teacher's; [N].

    Chen et al., arXiv 2104.09044. Levels are the student's maps and the teacher's pre-activations (its maps, where it
    has none) after the stem, paired from the last backwards, and the embeddings as maps of one pixel, where there are
    any.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        student, teacher = setup.student, setup.teacher
        stages = paired_shapes("reviewkd", student.maps[1:], (teacher.preacts or teacher.maps)[1:])
        levels = [(s[0], t[0]) for s, t in stages]
        self.embedded = student.embedding > 0
        if self.embedded:
            levels.append((student.embedding, teacher.embedding))
        width, last = min(WIDEST, levels[-1][0]), len(levels) - 1
        self.fusions = nn.ModuleList(Fusion(s, width, t, last=i == last) for i, (s, t) in enumerate(levels))

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        levels = paired(student.maps[1:], (teacher.preacts or teacher.maps)[1:])
        if self.embedded:
            levels.append((student.embedding[:, :, None, None], teacher.embedding[:, :, None, None]))
        reviewed: list[Tensor] = []
        later = None
        for fuse, (own, target) in zip(reversed(self.fusions), reversed(levels), strict=True):
            result, later = fuse(own, later, target.shape[2:])
            reviewed.insert(0, result)
        return hierarchical_context(reviewed, [target for _, target in levels])


@METHODS.register("reviewkd", paper="Chen et al., arXiv 2104.09044", year=2021)
def reviewkd(ce: float = 1.0, weight: float = 5.0, warmup: int = 20) -> list[Term]:
    """Knowledge review (Chen et al. 2021): cross entropy plus fused stages, with a warm-up.

    The pairs' weights are from the authors' commands, which train batches of 128 at rate 0.1 (ShuffleNets 0.02) with
    Nesterov's momentum. Batches of 64 at 0.05 (0.01) without it, as here, are mdistiller's.
    """
    return [Term("cross_entropy", ce), Term("reviewkd", weight, warmup=warmup)]
