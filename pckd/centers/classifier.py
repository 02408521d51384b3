from __future__ import annotations

from registry import CENTER_RULES, CenterRule, Centers, Network, Setup


@CENTER_RULES.register("classifier")
class ClassifierCenters(CenterRule):
    """Row k of each classifier's weight is the center of category k (PCKD, arXiv 2410.14143)."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()

    def forward(self, student_net: Network, teacher_net: Network) -> Centers:
        student, teacher = student_net.classifier, teacher_net.classifier
        return Centers(
            student.weight,
            teacher.weight.detach(),
            student.bias,
            None if teacher.bias is None else teacher.bias.detach(),
        )
