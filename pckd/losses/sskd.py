"""Losses about transformed views of each image (Xu et al., arXiv 2006.07114, SSKD: here rotations).

Shapes: B images, V views of each, N = B * V rows (image-major, view 0 upright), R = B * (V - 1) transformed rows. Where
images are shown in one view only, that view stands for its own transformation: R = B.

What compares transformed rows returns [N] all the same: 0 in the upright rows and in those left out, and the others
scaled so that the mean over the N rows is the mean over the rows that take part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.kd import kd
from pckd.ops import exact, full, unit
from registry import LOSSES, METHODS, Context, Output, Setup, Term, UserError


def _transformed(x: Tensor, views: int) -> Tensor:
    return x.unflatten(0, (-1, views))[:, 1:].flatten(0, 1) if views > 1 else x


def _over_all_rows(values: Tensor, kept: Tensor, views: int) -> Tensor:
    values = torch.where(kept, values, 0.0)
    if views > 1:
        values = F.pad(values.unflatten(0, (-1, views - 1)), (1, 0)).flatten()
    return values * (len(values) / kept.sum().clamp_min(1))


def view_similarity(embedding: Tensor, views: int) -> Tensor:
    """Cosine of every transformed row with every image's upright row: SSKD's matrix A; [R, B].

    Args:
        embedding: [N, D], of the self-supervision head. views: V.
    """
    with exact(embedding):
        embedding = unit(embedding)
        return _transformed(embedding, views) @ embedding[::views].T


def _own_images(similarity: Tensor) -> Tensor:
    images = torch.arange(similarity.shape[1], device=similarity.device)
    return images.repeat_interleave(len(similarity) // len(images))


def view_contrast(embedding: Tensor, views: int) -> Tensor:
    """Which image is this the transformation of: -log softmax_j(A_ij) at the own image, as SSKD trains its head; [N].

    The published code has no temperature here.

    Args:
        embedding: [N, D], of the self-supervision head. views: V.
    """
    similarity = view_similarity(embedding, views)
    own = _own_images(similarity)
    return _over_all_rows(F.cross_entropy(similarity, own, reduction="none"), torch.ones_like(own).bool(), views)


def reliable(scores: Tensor, targets: Tensor, ratio: float) -> Tensor:
    """SSKD's selective transfer: which rows a teacher gets right, or of the others is least wrong in; bool [R].

    A row's error is the rank of its target among the row's scores; of equal errors the earlier row goes first.

    Args:
        scores: [R, C]. targets: [R]. ratio: in [0, 1], the share of the wrong rows that is kept, rounded down.
    """
    rank = (scores > scores.gather(1, targets[:, None])).sum(dim=1)
    wrong = (rank > 0).sum()
    position = rank.argsort(stable=True).argsort()
    # The tolerance keeps a product such as 10 * 0.7 from being rounded below the integer that it is.
    return position - (len(rank) - wrong) + 1 <= wrong * ratio + 1e-3


def check(setup: Setup, *, temperature: float, ratio: float) -> None:
    if not (temperature > 0 and 0 <= ratio <= 1):
        raise UserError("transformed_kd: temperature must be above 0 and ratio in [0, 1]")


# With a ratio below 1 the order matters: of two rows that the teacher gets equally wrong, the earlier one is kept.
@LOSSES.register("transformed_kd", check=check, needs_views=2, order_matters=True, softmax=True)
def transformed_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    views: int,
    temperature: float = 4.0,
    ratio: float = 1.0,
) -> Tensor:
    """Knowledge distillation on the transformed rows, SSKD's L_T: T^2 KL(softmax(z_t / T) || softmax(z_s / T)); [N].

    Args:
        student_logits: [N, K]. teacher_logits: [N, K]; constant. labels: [N]. views: V.
        temperature: T. ratio: see :func:`reliable`; by the teacher's rank of the label.
    """
    student, teacher = (_transformed(x, views) for x in (student_logits, teacher_logits.detach()))
    kept = reliable(full(teacher), _transformed(labels, views), ratio)
    return _over_all_rows(kd(student, teacher, temperature), kept, views)


def similarity_transfer(
    student_embedding: Tensor, teacher_embedding: Tensor, views: int, temperature: float = 0.5, ratio: float = 0.75
) -> Tensor:
    """SSKD's L_ss: T^2 KL between the rows of the two networks' :func:`view_similarity`, softened by T; [N].

    Args:
        student_embedding: [N, Ds], of the student's self-supervision head.
        teacher_embedding: [N, Dt], of the teacher's; constant. views: V.
        temperature: T. ratio: see :func:`reliable`; by the teacher's rank of the own image.
    """
    student, teacher = (view_similarity(x, views) for x in (student_embedding, teacher_embedding.detach()))
    kept = reliable(teacher, _own_images(teacher), ratio)
    return _over_all_rows(kd(student, teacher, temperature), kept, views)


def head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


@LOSSES.register("self_supervision")
class SelfSupervision(nn.Module):
    """Which image is this a rotation of, as the teacher's head sees it; [N] (Xu et al., arXiv 2006.07114, L_ss).

    In the initial epochs the teacher's head is trained on the frozen teacher's embeddings; afterwards it is frozen, and
    the student with its own head learns the teacher's similarities between views.

    Args:
        temperature: of the similarities. ratio: share of the rows kept of those that the teacher's head gets wrong.
    """

    reads_maps = False
    needs_views = 2
    # Of two rows that the teacher's head gets equally wrong, the earlier one is kept.
    order_matters = True

    def __init__(self, setup: Setup, *, temperature: float = 0.5, ratio: float = 0.75) -> None:
        super().__init__()
        if not (temperature > 0 and 0 <= ratio <= 1):
            raise UserError("self_supervision: temperature must be above 0 and ratio in [0, 1]")
        self.temperature, self.ratio = temperature, ratio
        self.student_head = head(setup.student.embedding)
        self.teacher_head = head(setup.teacher.embedding)

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        if context.stage == "initial":
            return view_contrast(self.teacher_head(teacher.embedding.detach()), context.views)
        with torch.no_grad():
            target = self.teacher_head(teacher.embedding)
        embedding = self.student_head(student.embedding)
        return similarity_transfer(embedding, target, context.views, self.temperature, self.ratio)


@METHODS.register("sskd", paper="Xu et al., arXiv 2006.07114", year=2020)
def sskd(
    ce: float = 0.1,
    kd: float = 0.9,
    transformed: float = 2.7,
    similarity: float = 10.0,
    temperature: float = 4.0,
    similarity_temperature: float = 0.5,
    ratio: float = 0.75,
) -> list[Term]:
    """Distillation meets self-supervision (Xu et al. 2020): KD on all rotations plus similarities between views.

    60 epochs that train the teacher's self-supervision head come first; here at a constant learning rate, and in the
    released code at 0.05, times 0.1 after 30 and 45 of them.

    Of rows that the teacher gets equally wrong the earlier one is kept. The paper does not order them, and the released
    code takes any: by that the similarities' value may differ by 11 % in a batch, and their gradient by 32 %.
    """
    options = {"temperature": similarity_temperature, "ratio": ratio}
    return [
        Term("cross_entropy", ce),
        Term("kd", kd, options={"temperature": temperature}),
        Term("transformed_kd", transformed, views="all", options={"temperature": temperature}),
        Term("self_supervision", similarity, views="all", initial=60, initial_weight=1.0, options=options),
    ]
