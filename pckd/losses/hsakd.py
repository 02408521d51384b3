"""Hierarchical self-supervised augmented distillation (Yang et al., arXiv 2107.13715, HSAKD).

Shapes: N rows, four rotations of each image (image-major, view 0 upright), K classes, S stages.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.kd import kd
from pckd.losses.maps import Shape, paired, paired_shapes
from pckd.ops import full
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError

ROTATIONS = 4


def joint_labels(labels: Tensor, views: int) -> Tensor:
    """The class and the rotation together: label * views + view, of each row; [N].

    Args:
        labels: [N], of rows that show each image in ``views`` views, one after the other.
    """
    return labels * views + torch.arange(len(labels), device=labels.device) % views


class Block(nn.Module):
    """A residual block of two 3x3 convolutions, as in resnets for CIFAR."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.shortcut(x))


def auxiliary_head(shapes: list[Shape], blocks: int, classes: int) -> nn.Sequential:
    """What tells the class and the rotation from a stage's map [N, C, H, W]: logits [N, classes].

    Args:
        shapes: (C, H, W) of this stage and of those that follow in the network, whose widths and sizes it repeats; the
            last stage is followed by one like itself. blocks: of each stage.
    """
    layers: list[nn.Module] = []
    for own, following in zip(shapes, shapes[1:] or shapes, strict=False):
        strides = [max(1, round(own[1] / following[1])), *[1] * (blocks - 1)]
        widths = [own[0], *[following[0]] * blocks]
        layers += [Block(widths[i], widths[i + 1], stride) for i, stride in enumerate(strides)]
    head = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shapes[-1][0], classes))
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(head[-1].bias)  # type: ignore[arg-type]
    return head


@LOSSES.register("hsakd")
class AuxiliaryHeads(nn.Module):
    """Heads on every stage that tell class and rotation together, as the teacher's do; [N] (Yang et al. 2021).

    arXiv 2107.13715. In the initial epochs the teacher's heads learn from the frozen teacher's maps; afterwards they
    are frozen, and the student learns their answers with heads of its own: KD of every head, summed.

    Args:
        temperature: of KD.
        blocks, teacher_blocks: residual blocks of a stage of a head; published as many as the network's own stages
            have. Of networks other than resnets the published heads are of that network's own blocks.
    """

    needs_views = ROTATIONS

    def __init__(
        self, setup: Setup, *, temperature: float = 3.0, blocks: int = 1, teacher_blocks: int | None = None
    ) -> None:
        super().__init__()
        teacher_blocks = blocks if teacher_blocks is None else teacher_blocks
        if not temperature > 0 or min(blocks, teacher_blocks) < 1:
            raise UserError("hsakd: temperature must be above 0, and blocks and teacher_blocks at least 1")
        self.temperature = temperature
        pairs = paired_shapes("hsakd", setup.student.maps[1:], setup.teacher.maps[1:])
        classes = ROTATIONS * setup.student.num_classes
        own, theirs = ([*shapes] for shapes in zip(*pairs, strict=True))
        stages = range(len(pairs))
        self.student_heads = nn.ModuleList(auxiliary_head(own[i:], blocks, classes) for i in stages)
        self.teacher_heads = nn.ModuleList(auxiliary_head(theirs[i:], teacher_blocks, classes) for i in stages)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        pairs = paired(student.maps[1:], teacher.maps[1:])
        learning = context.stage == "initial"
        # Once frozen, they have the statistics that they were trained to.
        self.teacher_heads.train(self.training and learning)
        with torch.set_grad_enabled(learning and torch.is_grad_enabled()):
            theirs = [head(m.detach()) for head, (_, m) in zip(self.teacher_heads, pairs, strict=True)]
        if learning:
            labels = joint_labels(context.labels, context.views)
            return torch.stack([F.cross_entropy(full(x), labels, reduction="none") for x in theirs]).sum(0)
        own = [head(m) for head, (m, _) in zip(self.student_heads, pairs, strict=True)]
        return torch.stack([kd(*both, self.temperature) for both in zip(own, theirs, strict=True)]).sum(0)


@METHODS.register("hsakd", paper="Yang et al., arXiv 2107.13715", year=2021)
def hsakd(
    ce: float = 1.0,
    kd: float = 1.0,
    weight: float = 1.0,
    temperature: float = 3.0,
    blocks: int = 1,
    teacher_blocks: int | None = None,
    initial: int = 100,
) -> list[Term]:
    """HSAKD (Yang et al. 2021): KD on four rotations, and of auxiliary heads that tell class and rotation together.

    100 epochs that train the teacher's heads come first; here at a constant learning rate. The release trains with
    Nesterov's momentum, and its starred figures are of a teacher trained together with its heads.

    Args:
        ce: weight of the cross entropy of the upright views. kd: of KD on all. weight: of the heads' KD.
        temperature: of both. blocks, teacher_blocks: see the loss ``hsakd``. initial: epochs of 240.
    """
    heads = {"temperature": temperature, "blocks": blocks, "teacher_blocks": teacher_blocks}
    return [
        Term("cross_entropy", ce),
        Term("kd", kd, views="all", options={"temperature": temperature}),
        Term("hsakd", weight, views="all", initial=initial, initial_weight=1.0, options=heads),
    ]
