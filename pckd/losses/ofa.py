from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.maps import Shape
from pckd.ops import above_zero, full
from registry import LOSSES, METHODS, Context, NotApplicable, Output, Setup, Term


@LOSSES.register("ofa", check=above_zero("ofa", "temperature", "eps"), softmax=True)
def ofa(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, eps: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Cross entropy with the teacher's answer, the label's part of it enhanced; [N] (Hao et al., arXiv 2310.19444).

    -((1 + p_t(y))^eps - 1) log p_s(y) - sum over k != y of p_t(k)^eps log p_s(k).

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. labels: [N], int64, the y of each row.
        eps: from 1 on; the larger, the more the label counts beside the other classes. temperature: T > 0 of both.
    """
    is_label = F.one_hot(labels, student_logits.shape[-1])
    student = (full(student_logits) / temperature).log_softmax(-1)
    teacher = (full(teacher_logits.detach()) / temperature).softmax(-1)
    return -(((teacher + is_label) ** eps - is_label) * student).sum(-1)


def _halved(channels: int, width: int) -> list[nn.Module]:
    """Two separable convolutions, the first with stride 2, each followed by a batch norm and a ReLU."""
    layers: list[nn.Module] = []
    for stride, out in ((2, channels), (1, width)):
        depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        layers += [depthwise, nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    return layers


def _branch(shape: Shape, left: int, width: int, classes: int) -> nn.Sequential:
    """From a stage's map to logits; ``left`` stages come after it."""
    channels = [shape[0] * 2**at for at in range(left)] + [width]
    layers = [layer for at in range(left) for layer in _halved(channels[at], channels[at + 1])]
    layers = layers or [nn.Conv2d(shape[0], width, 1)]
    branch = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    for layer in branch:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return branch


@LOSSES.register("ofa_stages")
class Stages(nn.Module):
    """Each of the student's stages has a branch that answers, and learns :func:`ofa`; their sum, [N] (2310.19444).

    The teacher gives logits alone, so that it may be of any architecture. A branch halves the map once for each stage
    that follows, and doubles its channels. The released code has another branch for stages that are tokens.

    Args:
        eps, temperature: of :func:`ofa`.
    """

    reads_rows = True
    needs_rows = 2  # Of the batch norms.

    def __init__(self, setup: Setup, *, eps: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        above_zero("ofa_stages", "temperature", "eps")(setup, eps=eps, temperature=temperature)
        stages, classes = setup.student.maps[1:], setup.student.num_classes
        width = max(setup.student.embedding, setup.teacher.embedding)
        if not (stages and width):
            raise NotApplicable(
                "ofa_stages needs the student's feature maps after its stem, and an embedding of either network, which "
                "are not there; without it the method works on logits: ofa(stages=0)"
            )
        left = range(len(stages) - 1, -1, -1)
        branches = [_branch(stage, after, width, classes) for stage, after in zip(stages, left, strict=True)]
        self.branches, self.eps, self.temperature = nn.ModuleList(branches), eps, temperature

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        answers = [branch(stage) for branch, stage in zip(self.branches, student.maps[1:], strict=True)]
        options = self.eps, self.temperature
        return torch.stack([ofa(answer, teacher.logits, context.labels, *options) for answer in answers]).sum(0)


@METHODS.register("ofa", paper="Hao et al., arXiv 2310.19444", year=2023)
def ofa_method(
    ce: float = 1.0, weight: float = 1.0, stages: float = 1.0, eps: float = 1.0, temperature: float = 1.0
) -> list[Term]:
    """One for all (Hao et al. 2023): a teacher of any architecture teaches the student's stages by its logits.

    Published for 300 epochs with a cosine schedule, weight decay 2e-3 and label smoothing 0.1 on CIFAR-100.

    Args:
        ce: weight of the cross entropy. weight: of the logits' term. stages: of the sum over the stages.
        eps: how much the label counts in both; 1.5 for ResNet18 under DeiT-T on ImageNet. temperature: of both.
    """
    options = {"eps": eps, "temperature": temperature}
    return [
        Term("cross_entropy", ce),
        Term("ofa", weight, options=options),
        Term("ofa_stages", stages, options=options),
    ]
