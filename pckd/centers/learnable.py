from __future__ import annotations

import torch
from torch import nn

from registry import CENTER_RULES, CenterRule, Centers, Network, Setup


@CENTER_RULES.register("learnable")
class LearnableCenters(CenterRule):
    """The student's centers are parameters that the losses train; the teacher's are its classifier's rows."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        width = setup.student.embedding
        self.student = nn.Parameter(torch.randn(setup.student.num_classes, width) / width**0.5)

    def forward(self, student_net: Network, teacher_net: Network) -> Centers:
        return Centers(self.student, teacher_net.classifier.weight.detach())
