from __future__ import annotations

import torch
from torch import Tensor

from pckd.functional import blend_class_means, centered_means
from registry import CENTER_RULES, CenterRule, Centers, Network, Output, Setup, UserError


@CENTER_RULES.register("ema")
class RunningMeanCenters(CenterRule):
    """Exponential running class means of the two embeddings; a class not seen yet has its classifier's row.

    Args:
        momentum: of a mean at each step that shows its class, in [0, 1).
        raw: the means themselves, which are long and much alike, so that the category contrast at its published weight
            drowns all else. Otherwise less their mean over the classes, at the length of the classifier's rows.
    """

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
        return Centers(
            self._centers(self.student, student_net.classifier.weight.detach()),
            self._centers(self.teacher, teacher_net.classifier.weight.detach()),
        )

    def _centers(self, means: Tensor, rows: Tensor) -> Tensor:
        # Both make new tensors: the update after the step must not change what the backward pass has saved.
        return torch.where(self.seen[:, None], means, rows) if self.raw else centered_means(means, self.seen, rows)

    @torch.no_grad()
    def update(self, student: Output, teacher: Output, labels: Tensor) -> None:
        blend_class_means(self.student, self.seen.clone(), student.embedding, labels, self.momentum)
        blend_class_means(self.teacher, self.seen, teacher.embedding, labels, self.momentum)


@CENTER_RULES.register("batch_mean")
def batch_mean(setup: Setup, *, raw: bool = False) -> RunningMeanCenters:
    """Class means of the newest batch that held the class, otherwise as ``ema``."""
    return RunningMeanCenters(setup, momentum=0.0, raw=raw)
