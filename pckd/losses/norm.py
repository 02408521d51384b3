from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.cross_entropy import cross_entropy
from pckd.losses.kd import kd
from pckd.losses.maps import paired_shapes, read_map_at, read_shape_at, smaller_size
from pckd.ops import full, published_epoch
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError

SCALE, EPSILON = 2.5, 1e-7
"""Of the normalized logits, as released."""
STEPS = ((10, 0.1), (20, 0.5), (180, 1.0), (210, 0.5))
"""Before which epoch of 240 the matching counts how much; a tenth after the last."""


def n_to_one(expanded_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of each of n groups of channels and the teacher's map, summed over the groups; [N].

    NORM (Liu et al., ICLR 2023).

    Args:
        expanded_map: [N, n * C, H, W]. teacher_map: [N, C, H', W']; constant. The larger of two is max pooled.
    """
    size = smaller_size(expanded_map, teacher_map)
    student, teacher = (
        x if x.shape[2:] == size else F.adaptive_max_pool2d(x, size)
        for x in (full(expanded_map), full(teacher_map.detach()))
    )
    groups = student.unflatten(1, (-1, teacher.shape[1]))
    return (groups - teacher[:, None]).square().mean((2, 3, 4)).sum(1)


@LOSSES.register("norm")
class NToOne(nn.Module):
    """An expansion of the student's last map that repeats the teacher's, and answers with a head of its own; [N].

    NORM (Liu et al., ICLR 2023): two 1x1 convolutions with batch norms and no activation widen the map to n times the
    teacher's channels and narrow it again, beside a residual connection. A classifier reads its mean; logits are
    normalized over the classes, times 2.5. All of it answers for the trained student. In a wide resnet the release has
    the expansion before the last batch norm, here after its ReLU.

    Args:
        ce, kd: weights of the cross entropy and of KD of these logits. weight: of the matching, by epoch as released.
        groups: n. temperature: of KD.
    """

    reads_rows = True
    softmax = True

    def __init__(
        self,
        setup: Setup,
        *,
        ce: float = 0.1,
        kd: float = 0.0,
        weight: float = 1.0,
        groups: int = 8,
        temperature: float = 4.0,
    ) -> None:
        super().__init__()
        if groups < 1 or not temperature > 0:
            raise UserError("norm: groups must be 1 or above, and temperature above 0")
        self.ce, self.kd, self.weight, self.temperature = ce, kd, weight, temperature
        (own, *_) = read_shape_at("norm", "student", setup.student)
        wide = groups * paired_shapes("norm", setup.teacher.maps[-1:], setup.teacher.maps[-1:])[0][1][0]
        self.expand = nn.Sequential(nn.Conv2d(own, wide, 1, bias=False), nn.BatchNorm2d(wide))
        self.reduce = nn.Sequential(nn.Conv2d(wide, own, 1, bias=False), nn.BatchNorm2d(own))
        self.classifier = nn.Linear(own, setup.student.num_classes)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        expanded, logits = self._answer(student)
        instances = context.instances
        value = self.ce * cross_entropy(logits, instances.labels, instances.targets, instances.sample_weights)
        if self.kd:
            value = value + self.kd * kd(logits, self._normalized(teacher.logits), self.temperature)
        epoch = published_epoch(context)
        share = next((share for end, share in STEPS if epoch < end), 0.1)
        return value + share * self.weight * n_to_one(expanded, teacher.maps[-1])

    def predict(self, student: Output) -> Tensor:
        return self._answer(student)[1]

    def _answer(self, student: Output) -> tuple[Tensor, Tensor]:
        own = read_map_at(student)
        expanded = self.expand(own)
        return expanded, self._normalized(self.classifier((own + self.reduce(expanded)).mean((2, 3))))

    @staticmethod
    def _normalized(logits: Tensor) -> Tensor:
        return SCALE * F.layer_norm(full(logits), logits.shape[1:], eps=EPSILON)


@METHODS.register("norm", paper="Liu et al., NORM, ICLR", year=2023)
def norm(
    ce: float = 0.1, kd: float = 0.0, weight: float = 1.0, groups: int = 8, temperature: float = 4.0
) -> list[Term]:
    """N-to-one representation matching (Liu et al. 2023): a widened map repeats the teacher's, and answers.

    The student's own classifier is not trained, as with ``simkd``. ``kd=1`` is the paper's NORM+KD. The release tries
    ce 1/16 to 1/2; that of each pair is not published. Options as of the loss ``norm``.
    """
    options = {"ce": ce, "kd": kd, "weight": weight, "groups": groups, "temperature": temperature}
    return [Term("norm", options=options)]
