from __future__ import annotations

import torch
from torch import Tensor

from pckd.functional import blend_class_means
from registry import CENTER_RULES, CenterRule, Centers, Network, Output, Setup, UserError


@CENTER_RULES.register("ema")
class RunningMeanCenters(CenterRule):
    """Exponential running class means of the two embeddings; a class not seen yet has its classifier's row."""

    def __init__(self, setup: Setup, *, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise UserError(f"ema: momentum must be in [0, 1), not {momentum}")
        self.momentum = momentum
        classes = setup.student.num_classes
        self.student: Tensor
        self.teacher: Tensor
        self.seen: Tensor
        self.register_buffer("student", torch.zeros(classes, setup.student.embedding))
        self.register_buffer("teacher", torch.zeros(classes, setup.teacher.embedding))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))

    def forward(self, student_net: Network, teacher_net: Network) -> Centers:
        seen = self.seen[:, None]
        # where() makes new tensors: the update after the step must not change what the backward pass has saved.
        return Centers(
            torch.where(seen, self.student, student_net.classifier.weight.detach()),
            torch.where(seen, self.teacher, teacher_net.classifier.weight.detach()),
        )

    @torch.no_grad()
    def update(self, student: Output, teacher: Output, labels: Tensor) -> None:
        blend_class_means(self.student, self.seen.clone(), student.embedding, labels, self.momentum)
        blend_class_means(self.teacher, self.seen, teacher.embedding, labels, self.momentum)


@CENTER_RULES.register("batch_mean")
def batch_mean(setup: Setup) -> RunningMeanCenters:
    """Class means of the newest batch that held the class; a class not seen yet has its classifier's row."""
    return RunningMeanCenters(setup, momentum=0.0)
