from __future__ import annotations

import torch
from torch import Tensor, nn

from pckd import functional
from registry import LOSSES, METHODS, Context, NotApplicable, Output, Setup, Term, UserError


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
    """

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
    ) -> None:
        super().__init__()
        if setup.num_samples < 2:
            raise NotApplicable("crd: no sample index; it works with a training set of known size, 2 images or more")
        slots = setup.num_samples if memory is None else min(memory, setup.num_samples)
        if min(slots - 1, width, negatives) < 1 or not (temperature > 0 and 0 <= momentum < 1):
            raise UserError("crd: memory >= 2, width >= 1, negatives >= 1, temperature > 0, 0 <= momentum < 1")
        self.temperature, self.momentum, self.negatives = temperature, momentum, min(negatives, slots - 1)
        self.embed_student = nn.Linear(setup.student.embedding, width)
        self.embed_teacher = nn.Linear(setup.teacher.embedding, width)
        self.register_buffer("banks", (2 * torch.rand(2, slots, width) - 1) * (3 / width) ** 0.5)
        self.register_buffer("owner", torch.arange(slots))
        self.register_buffer("label", torch.full((slots,), -1))
        self.register_buffer("log_z", torch.full((2,), -torch.inf))

    def forward(self, student: Output, teacher: Output, context: Context) -> Tensor:
        own = context.index % len(self.owner)
        mine = self.owner[own] == context.index
        counts = functional.draw_negatives(own, len(self.owner), self.negatives)
        counts = functional.keep_other_classes(counts, context.labels, self.label)
        pair = self.embed_student(student.embedding), self.embed_teacher(teacher.embedding.detach())
        query = functional.unit(torch.stack(pair))
        old = self.banks[:, own]
        key = torch.where(mine[:, None], old, query.detach())
        # Flipped: each network's query meets the other's memory. It is a copy, so the bank may be written below.
        positive, negatives = functional.bank_scores(query, key.flip(0), self.banks.flip(0), self.temperature)
        log_z = torch.where(self.log_z.isinf(), functional.log_normalizer(positive, negatives, counts), self.log_z)
        if self.training:
            row = functional.first_rows(own)
            self.banks.index_copy_(1, own, functional.renewed(old, query, self.momentum * mine)[:, row])
            self.owner.index_copy_(0, own, context.index[row])
            self.label.index_copy_(0, own, context.labels[row])
            self.log_z.copy_(log_z)
        return functional.noise_contrast(positive, negatives, counts, self.negatives, log_z).sum(dim=0)


@METHODS.register("crd", paper="Tian et al., arXiv 1910.10699", year=2020)
def crd_method(
    ce: float = 1.0, kd: float = 0.0, weight: float = 0.8, negatives: int = 16384, memory: int | None = None
) -> list[Term]:
    """Contrastive representation distillation (Tian et al. 2020): cross entropy plus contrast with a memory.

    ``kd=1`` is the paper's CRD+KD. ``memory`` bounds the slots of each bank, for large data sets.
    """
    options = {"negatives": negatives, "memory": memory}
    return [Term("cross_entropy", ce), Term("kd", kd), Term("crd", weight, options=options)]
