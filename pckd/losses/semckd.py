from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.maps import paired_shapes, resized, smaller_size
from pckd.ops import exact, full, mean_square, unit
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


def calibrated_difference(pairs: Sequence[Sequence[tuple[Tensor, Tensor]]], attention: Tensor) -> Tensor:
    """Mean squared differences of every two layers by their attention, over the student's layers; [N] (SemCKD).

    Chen et al., arXiv 2012.03236.

    Args:
        pairs: of S of the student's layers and T of the teacher's a pair of maps [N, C, H, W] of one shape; the
            teacher's is a constant. attention: [N, S, T], how much each of the teacher's layers counts.
    """
    errors = [torch.stack([mean_square(*pair, "calibrated_difference") for pair in layer], 1) for layer in pairs]
    return (attention * torch.stack(errors, 1)).sum((1, 2)) / len(pairs)


@LOSSES.register("semckd")
class SemanticCalibration(nn.Module):
    """Every layer of the student by all of the teacher's, as an attention finds them alike; [N] (arXiv 2012.03236).

    Layers are the maps after the stem. A layer of the attention reads how alike a row is to each row of its step, so
    that it has as many inputs as the release has images a step. Here larger steps are looked at in groups of as many,
    and smaller ones are filled up with zeros.

    Args:
        rows: how many. factor: by how much less the attention's vectors have.
    """

    order_matters = True

    def __init__(self, setup: Setup, *, rows: int = 64, factor: int = 4) -> None:
        super().__init__()
        if not (rows >= factor >= 1):
            raise UserError(f"semckd: factor must be 1 or above, and rows at least as many, not {factor} and {rows}")
        student, teacher = setup.student.maps[1:], setup.teacher.maps[1:]
        paired_shapes("semckd", student, teacher)
        self.rows = rows
        width = rows // factor
        self.keys, self.queries = (
            nn.ModuleList(
                nn.Sequential(nn.Linear(rows, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)) for _ in layers
            )
            for layers in (teacher, student)
        )
        self.regressors = nn.ModuleList(
            nn.ModuleList(_regressor(own[0], target[0]) for target in teacher) for own in student
        )

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        own, theirs = student.maps[1:], [m.detach() for m in teacher.maps[1:]]
        query, key = self._embedded(own, self.queries), self._embedded(theirs, self.keys)
        with exact(query):
            attention = (query @ key.mT).softmax(2)
        pairs = []
        for m, regressors in zip(own, self.regressors, strict=True):
            assert isinstance(regressors, nn.ModuleList)
            sizes = [smaller_size(m, target) for target in theirs]
            projected = [regress(resized(m, size)) for regress, size in zip(regressors, sizes, strict=True)]
            targets = [resized(target, size) for target, size in zip(theirs, sizes, strict=True)]
            pairs.append(list(zip(projected, targets, strict=True)))
        return calibrated_difference(pairs, attention)

    def _embedded(self, maps: Sequence[Tensor], layers: nn.ModuleList) -> Tensor:
        """How each layer sees the rows of a step, [N, layers, width], each of length 1."""
        vectors = []
        for m, layer in zip(maps, layers, strict=True):
            with exact(m):
                groups = [group @ group.T for group in full(m).flatten(1).split(self.rows)]
                alike = torch.cat([F.pad(group, (0, self.rows - len(group))) for group in groups])
                vectors.append(unit(layer(alike)))
        return torch.stack(vectors, 1)


def _regressor(channels: int, target: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 2 * target, 1, bias=False),
        nn.BatchNorm2d(2 * target),
        nn.ReLU(),
        nn.Conv2d(2 * target, 2 * target, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * target),
        nn.ReLU(),
        nn.Conv2d(2 * target, target, 1, bias=False),
    )


@METHODS.register("semckd", paper="Chen et al., arXiv 2012.03236", year=2021)
def semckd(
    ce: float = 1.0, kd: float = 1.0, weight: float = 400.0, temperature: float = 4.0, rows: int = 64
) -> list[Term]:
    """Semantic calibration (Chen et al. 2021): cross entropy, KD, and all layers by all of the teacher's.

    ``rows`` is the batch size that the attention is made for; see the loss ``semckd``.
    """
    return [
        Term("cross_entropy", ce),
        Term("kd", kd, options={"temperature": temperature}),
        Term("semckd", weight, options={"rows": rows}),
    ]
