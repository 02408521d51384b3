"""ViTKD (Yang et al., arXiv 2209.02432): features of vision transformers, as maps of their patches [N, C, H, W]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pckd.ops import full
from registry import LOSSES, METHODS, Context, NotApplicable, Output, Setup, Term, UserError


def squared_distance(student_map: Tensor, teacher_map: Tensor, where: Tensor | float = 1.0) -> Tensor:
    """Sum of squared differences; [N].

    Args:
        student_map, teacher_map: [N, C, H, W] each; the teacher's is a constant. where: [N, 1, H, W], which cells.
    """
    return ((full(student_map) - full(teacher_map.detach())) * where).square().flatten(1).sum(1)


def masked_cells(shape: torch.Size, mask: float, device: torch.device) -> Tensor:
    """Which cells of maps [N, C, H, W] are masked: of each image as many, drawn at random; bool [N, 1, H, W].

    Args:
        mask: their share, rounded up.
    """
    cells = shape[2] * shape[3]
    rank = torch.rand(shape[0], cells, device=device).argsort(1).argsort(1)
    return (rank >= int(cells * (1 - mask))).view(shape[0], 1, *shape[2:])


class _OfLayers(nn.Module):
    """Two maps by the paths of their modules, and a linear layer where their widths differ."""

    reads_layers = True

    def __init__(self, loss: str, setup: Setup, student: str, teacher: str) -> None:
        super().__init__()
        if not (student and teacher):
            raise NotApplicable(
                f"{loss} is for vision transformers, whose layers it must be told: of timm's "
                f"{loss}(student='blocks.0,blocks.1,norm')"
            )
        self.paths = student, teacher
        own, target = (dict(shapes.layers).get(path, ()) for shapes, path in zip(setup[:2], self.paths, strict=True))
        if len(own) != 3 or len(target) != 3 or own[1:] != target[1:]:
            raise NotApplicable(
                f"{loss} compares the patches of two transformers, and the student's {student!r} gives {list(own)} an "
                f"image, the teacher's {teacher!r} {list(target)}: name modules whose maps are of one size"
            )
        self.width = target[0]
        self.align = nn.Identity() if own[0] == self.width else nn.Conv2d(own[0], self.width, 1)

    def maps(self, student: Output, teacher: Output) -> tuple[Tensor, Tensor]:
        layers: Any = student.layers, teacher.layers
        return self.align(layers[0][self.paths[0]]), layers[1][self.paths[1]].detach()


@LOSSES.register("vitkd_mimicking")
class Mimicking(_OfLayers):
    """Summed squares of the difference of two layers, for the first ones; [N] (Yang et al., arXiv 2209.02432).

    Args:
        student, teacher: paths of modules.
    """

    def __init__(self, setup: Setup, *, student: str = "", teacher: str = "") -> None:
        super().__init__("vitkd", setup, student, teacher)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        return squared_distance(*self.maps(student, teacher))


@LOSSES.register("vitkd_generation")
class Generation(_OfLayers):
    """Patches of the teacher's last layer, made of the student's others; [N] (Yang et al., arXiv 2209.02432).

    A random share of the student's patches gives place to a learned token, and two 3x3 convolutions generate all; the
    squares are summed over what was masked, and divided by its share.

    Args:
        mask: the share (lambda). student, teacher: paths of modules.
    """

    def __init__(self, setup: Setup, *, mask: float = 0.5, student: str = "", teacher: str = "") -> None:
        super().__init__("vitkd", setup, student, teacher)
        if not 0 < mask < 1:
            raise UserError(f"vitkd: mask must be above 0 and below 1, not {mask}")
        self.mask = mask
        self.token = nn.Parameter(torch.zeros(1, self.width, 1, 1))
        width = self.width
        self.generate = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        own, target = self.maps(student, teacher)
        masked = masked_cells(own.shape, self.mask, own.device)
        generated = self.generate(torch.where(masked, self.token.to(own.dtype), own))
        return squared_distance(generated, target, masked) / self.mask


@METHODS.register("vitkd", paper="Yang et al., arXiv 2209.02432", year=2022)
def vitkd(
    ce: float = 1.0,
    mimicking: float = 3e-5,
    generation: float = 3e-6,
    mask: float = 0.5,
    student: str = "",
    teacher: str = "",
) -> list[Term]:
    """ViTKD (Yang et al. 2022): cross entropy, the first layers of a vision transformer mimicked, the last generated.

    Args:
        ce: weight of the cross entropy.
        mimicking: of the first layers. generation: of the last; both as released for ImageNet. mask: its share masked.
        student: paths of modules with commas between, of which the last is generated: ``"blocks.0,blocks.1,norm"`` of
            timm's vision transformers. teacher: likewise; by default the same.
    """
    own, theirs = (paths.split(",") for paths in (student or ",,", teacher or student or ",,"))
    if len(own) != len(theirs) or len(own) < 2:
        raise UserError(
            f"vitkd: {len(own)} layers of the student and {len(theirs)} of the teacher; name 2 or more each"
        )
    *first, last = [{"student": one.strip(), "teacher": other.strip()} for one, other in zip(own, theirs, strict=True)]
    return [
        Term("cross_entropy", ce),
        *(Term("vitkd_mimicking", mimicking, options=paths) for paths in first),
        Term("vitkd_generation", generation, options={"mask": mask, **last}),
    ]
