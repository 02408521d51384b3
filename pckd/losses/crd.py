"""Contrast with a memory bank by noise-contrastive estimation (Tian et al., arXiv 1910.10699, CRD).

Shapes: N rows (anchors), M slots of the bank, D width of the contrast space. The negatives of a row are m slots drawn
with replacement; they are kept as ``counts`` [N, M], how often each slot was drawn. Sums over draws are then sums over
slots: no [N, m, D] copy of the bank, and a backward pass without colliding writes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pckd.losses.banks import Write, crossed_scores, first_rows, renewed
from pckd.ops import announce, full, unit
from registry import LOSSES, METHODS, Context, NotApplicable, Output, Setup, Term, UserError


def draw_negatives(own: Tensor, slots: int, draws: int) -> Tensor:
    """Draw slots uniformly, never the own one; counts [N, M], whose rows sum to ``draws`` and are 0 at ``own``.

    Args:
        own: [N], int64, each row's own slot. slots: M, at least 2. draws: m, with replacement.
    """
    shift = torch.randint(1, slots, (len(own), draws), device=own.device)
    counts = torch.zeros(len(own), slots, device=own.device)
    return counts.scatter_add_(1, (own[:, None] + shift) % slots, torch.ones_like(shift, dtype=counts.dtype))


def keep_other_classes(counts: Tensor, labels: Tensor, slot_labels: Tensor) -> Tensor:
    """Leave out the draws that show the row's own class, and scale the others up to as many draws as there were.

    So the row's sum over draws has the expectation that draws from other classes alone would give it. All counts [N, M]
    of a row that drew its own class only are 0.

    Args:
        counts: [N, M]. labels: [N]. slot_labels: [M], negative where not known yet: that counts as another class.
    """
    kept = counts * (labels[:, None] != slot_labels[None, :])
    return kept * (counts.sum(dim=1) / kept.sum(dim=1).clamp_min(1))[:, None]


@torch.no_grad()
def log_normalizer(positive: Tensor, negatives: Tensor, counts: Tensor) -> Tensor:
    """log Z, with Z = M * mean of exp(score) over positives and drawn negatives, of the first batch; [...].

    Args:
        positive: [..., N]. negatives: [..., N, M]. counts: [N, M].
    """
    positive, negatives = full(positive), full(negatives)
    largest = torch.maximum(positive.amax(dim=-1), negatives.amax(dim=(-2, -1)))
    drawn = (counts * (negatives - largest[..., None, None]).exp()).sum(dim=(-2, -1))
    mean = ((positive - largest[..., None]).exp().sum(dim=-1) + drawn) / (len(counts) + counts.sum())
    return largest + mean.clamp_min(torch.finfo(mean.dtype).tiny).log() + math.log(counts.shape[1])


def noise_contrast(positive: Tensor, negatives: Tensor, counts: Tensor, draws: int, log_z: Tensor) -> Tensor:
    """Is a pair a joint one or noise: -log h(positive) - sum over the draws of log(1 - h(negative)); [..., N].

    h = P / (P + m / M) with P = exp(score) / Z: CRD's critic and its loss (equation 18), with m negatives. Computed
    from log P, it needs no small constant and is finite for any score.

    Args:
        positive: [..., N], scores. negatives: [..., N, M], scores of every slot. counts: [N, M].
        draws: m, how many negatives each row has. log_z: [...].
    """
    noise = (log_z + math.log(draws / counts.shape[1]))[..., None]
    others = counts * F.softplus(full(negatives) - noise[..., None])
    return F.softplus(noise - full(positive)) + others.sum(dim=-1)


@LOSSES.register("crd")
class ContrastiveRepresentation(nn.Module):
    """Each network's embedding against a memory of the other's; [N] (Tian et al., arXiv 1910.10699).

    The positive of a row is what the other network's bank holds of the same sample; the negatives are uniform draws of
    samples of other classes, as in the released CIFAR recipe. (There they are drawn without replacement from lists
    made beforehand; here with replacement, and the bank learns the labels as it is filled: until a sample has been
    seen once, it counts as one of another class.)

    Args:
        width: of the contrast space. temperature: of the scores.
        negatives: draws a row; at most as many as there are other slots, as more would only repeat them.
        momentum: share of the old vector when a sample is seen again.
        memory: slots of each bank; by default one a sample. A smaller bank keeps sample i in slot i modulo ``memory``:
            the sample seen last owns the slot, and a row that does not own its slot has the other network's embedding
            of this very step as its positive.
        half: keep the banks in half precision (float16). Scores are computed in float32 all the same.

    Two banks of float32 take 8 * width bytes a slot: 1.22 GiB for the 1.28 M images of ImageNet. A step takes some 36
    bytes more for each row and slot (2.8 GiB for 64 rows), which ``memory`` bounds and ``half`` does not change.
    """

    reads_maps = False
    needs_index = True
    banks: Tensor
    owner: Tensor
    label: Tensor
    log_z: Tensor

    def __init__(
        self,
        setup: Setup,
        *,
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        memory: int | None = None,
        half: bool = False,
    ) -> None:
        super().__init__()
        if not setup.stable_index:
            raise NotApplicable(
                "crd: a row has no place in its memory, because this task's rows are no samples that last"
            )
        if setup.num_samples < 2:
            raise NotApplicable("crd: no sample index; it works with a training set of known size, 2 images or more")
        slots = setup.num_samples if memory is None else min(memory, setup.num_samples)
        if min(slots - 1, width, negatives) < 1 or not (temperature > 0 and 0 <= momentum < 1):
            raise UserError("crd: memory >= 2, width >= 1, negatives >= 1, temperature > 0, 0 <= momentum < 1")
        self.temperature, self.momentum, self.negatives = temperature, momentum, min(negatives, slots - 1)
        self.embed_student = nn.Linear(setup.student.embedding, width)
        self.embed_teacher = nn.Linear(setup.teacher.embedding, width)
        dtype = torch.float16 if half else torch.float32
        smaller = f"{'' if half else 'crd(half=True) takes half of it, and '}crd(memory=N) has N slots"
        announce("crd", (2, slots, width), dtype, smaller)
        banks = torch.rand(2, slots, width, dtype=dtype)
        self.register_buffer("banks", banks.mul_(2).sub_(1).mul_((3 / width) ** 0.5))
        self.register_buffer("owner", torch.arange(slots))
        self.register_buffer("label", torch.full((slots,), -1))
        self.register_buffer("log_z", torch.full((2,), -torch.inf))
        self._next = Write()

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        own = context.index % len(self.owner)
        mine = self.owner[own] == context.index
        counts = draw_negatives(own, len(self.owner), self.negatives)
        counts = keep_other_classes(counts, context.labels, self.label)
        pair = self.embed_student(student.embedding), self.embed_teacher(teacher.embedding.detach())
        query = unit(torch.stack(pair))
        old = self.banks[:, own]
        key = torch.where(mine[:, None], old, query.detach())
        positive, negatives = crossed_scores(query, key, self.banks, self.temperature, self._next)
        log_z = torch.where(self.log_z.isinf(), log_normalizer(positive, negatives, counts), self.log_z)
        if self.training:
            row = first_rows(own)
            new = renewed(full(old), query, self.momentum * mine)[:, row]
            self.banks.index_copy_(1, own, new.to(old.dtype))
            self.owner.index_copy_(0, own, context.index[row])
            self.label.index_copy_(0, own, context.labels[row])
            self.log_z.copy_(log_z)
            self._next = self._next.done(own, old)
        return noise_contrast(positive, negatives, counts, self.negatives, log_z).sum(dim=0)


@METHODS.register("crd", paper="Tian et al., arXiv 1910.10699", year=2020)
def crd_method(
    ce: float = 1.0,
    kd: float = 0.0,
    weight: float = 0.8,
    negatives: int = 16384,
    memory: int | None = None,
    half: bool = False,
) -> list[Term]:
    """Contrastive representation distillation (Tian et al. 2020): cross entropy plus contrast with a memory.

    ``kd=1`` is the paper's CRD+KD. For large data sets ``memory`` bounds the slots of each bank, and ``half`` keeps
    them in half precision.

    The released code has a small constant that equation 18 does not have: the value differs by 3e-5 of it, the gradient
    by 1e-7. Its negatives are drawn without replacement and here with it, to the same expectation: of 1,638 draws from
    5,000, 15 % of the slots that are hit are hit more than once.
    """
    options = {"negatives": negatives, "memory": memory, **({"half": True} if half else {})}
    return [Term("cross_entropy", ce), Term("kd", kd), Term("crd", weight, options=options)]
