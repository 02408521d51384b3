"""Center rules: what the center of each category is; and class means of embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pckd.ops import full
from registry import CENTER_RULES, Absent, CenterRule, Centers, Network, Output, Setup, UserError


@CENTER_RULES.register("classifier")
class ClassifierCenters(CenterRule):
    """Row k of each classifier's weight is the center of category k (PCKD, arXiv 2410.14143)."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()

    def forward(self, student_net: Network, teacher_net: Network) -> Centers:
        (student, student_bias), (teacher, teacher_bias) = rows_of(student_net), rows_of(teacher_net, constant=True)
        return Centers(student, teacher, student_bias, teacher_bias)


def rows_of(network: Network, *, constant: bool = False) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias of a network's classifier; Absent where it has none: a loss that looks at it is refused.

    Args:
        constant: without gradient.
    """
    layer: Any = network.classifier
    if isinstance(layer, Absent):
        return layer, None  # type: ignore[return-value]
    rows, bias = layer.weight, layer.bias
    return (rows.detach(), None if bias is None else bias.detach()) if constant else (rows, bias)


@CENTER_RULES.register("learnable")
class LearnableCenters(CenterRule):
    """The student's centers are parameters that the losses train; the teacher's are its classifier's rows."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        width = setup.student.embedding
        self.student = nn.Parameter(torch.randn(setup.student.num_classes, width) / width**0.5)

    def forward(self, student_net: Network, teacher_net: Network) -> Centers:
        return Centers(self.student, rows_of(teacher_net, constant=True)[0])


def class_means(embedding: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean embedding of each class in a batch.

    Args:
        embedding: [N, D]. labels: [N]. num_classes: K.

    Returns:
        means [K, D], zero for a class that does not occur, and counts [K].
    """
    embedding = full(embedding)
    counts = torch.zeros(num_classes, dtype=embedding.dtype, device=embedding.device)
    counts.index_add_(0, labels, torch.ones_like(labels, dtype=embedding.dtype))
    sums = torch.zeros(num_classes, embedding.shape[1], dtype=embedding.dtype, device=embedding.device)
    sums.index_add_(0, labels, embedding)
    return sums / counts.clamp_min(1)[:, None], counts


def centered_means(means: Tensor, seen: Tensor, rows: Tensor, mean_length: Tensor | None = None) -> Tensor:
    """Class means as a classifier's rows lie: less their mean over the classes, at the mean length of the rows.

    Embeddings that are not negative have means that all point one way and are several times as long as the rows; a loss
    whose scale follows its centers' length is made for rows. Of a trained network the two lie alike up to scale (neural
    collapse, Papyan, Han and Donoho 2020, arXiv 2008.08186).

    Args:
        means: [K, D]. seen: bool [K]. rows: [K, D], the classifier's weight.
        mean_length: that the means get; by default that of the rows.

    Returns:
        [K, D]; the classifier's row where a class has not been seen, or only one has.
    """
    known = (seen & (seen.sum() > 1))[:, None]
    count = known.sum().clamp_min(1)
    centered = torch.where(known, means - torch.where(known, means, 0).sum(dim=0) / count, 0)
    target = rows.norm(dim=1).mean() if mean_length is None else mean_length
    length = target / (centered.norm(dim=1).sum() / count).clamp_min(1e-12)
    return torch.where(known, centered * length, rows)


def blend_class_means(centers: Tensor, seen: Tensor, embedding: Tensor, labels: Tensor, momentum: float) -> None:
    """Move centers [K, D] toward the batch's class means, in place: c = momentum * c + (1 - momentum) * mean.

    A class seen for the first time takes its mean whole; a class that is not in the batch keeps its center.

    Args:
        centers: [K, D], changed in place. seen: bool [K], changed in place.
        embedding: [N, D]. labels: [N]. momentum: in [0, 1); 0 keeps the newest batch mean alone.
    """
    means, counts = class_means(embedding, labels, centers.shape[0])
    present = counts > 0
    keep = torch.where(present, torch.where(seen, momentum, 0.0), 1.0)[:, None]
    centers.copy_(keep * centers + (1 - keep) * means)
    seen.logical_or_(present)


@CENTER_RULES.register("ema")
class RunningMeanCenters(CenterRule):
    """Exponential running class means of the two embeddings; a class not seen yet has its classifier's row.

    Args:
        momentum: of a mean at each step that shows its class, in [0, 1).
        raw: the means themselves, which are long and much alike, so that the category contrast at its published weight
            drowns all else. Otherwise less their mean over the classes, at the length of the classifier's rows.
    """

    reads_maps = False

    def __init__(self, setup: Setup, *, momentum: float = 0.9, raw: bool = False) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise UserError(f"ema: momentum must be in [0, 1), not {momentum}")
        self.momentum = momentum
        self.raw = raw
        classes = setup.student.num_classes
        self.student: Tensor
        self.teacher: Tensor
        self.seen: Tensor
        self.register_buffer("student", torch.zeros(classes, setup.student.embedding))
        self.register_buffer("teacher", torch.zeros(classes, setup.teacher.embedding))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))

    def forward(self, student_net: Network, teacher_net: Network) -> Centers:
        (student, _), (teacher, _) = rows_of(student_net, constant=True), rows_of(teacher_net, constant=True)
        # A teacher that is no classifier has centers as long as the student's, and none before a class is seen.
        length = student.norm(dim=1).mean() if isinstance(teacher, Absent) else None
        rows = torch.zeros_like(self.teacher) if isinstance(teacher, Absent) else teacher
        return Centers(self._centers(self.student, student), self._centers(self.teacher, rows, length))

    def _centers(self, means: Tensor, rows: Tensor, length: Tensor | None = None) -> Tensor:
        # Both make new tensors: the update after the step must not change what the backward pass has saved.
        return (
            torch.where(self.seen[:, None], means, rows) if self.raw else centered_means(means, self.seen, rows, length)
        )

    @torch.no_grad()
    def update(self, student: Output, teacher: Output, labels: Tensor) -> None:
        blend_class_means(self.student, self.seen.clone(), student.embedding, labels, self.momentum)
        blend_class_means(self.teacher, self.seen, teacher.embedding, labels, self.momentum)


@CENTER_RULES.register("batch_mean")
def batch_mean(setup: Setup, *, raw: bool = False) -> RunningMeanCenters:
    """Class means of the newest batch that held the class, otherwise as ``ema``."""
    return RunningMeanCenters(setup, momentum=0.0, raw=raw)
