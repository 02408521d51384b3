"""Memory banks: scores with them, and writing into them; large ones without a copy.

Shapes: N rows, M slots of a bank, D its width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pckd.ops import LARGE, exact, full, unit

PIECE = 2**16
"""Slots of a bank in half precision that are read at a time."""


def bank_scores(query: Tensor, key: Tensor, bank: Tensor, temperature: float = 0.07) -> tuple[Tensor, Tensor]:
    """Scores query . key / temperature, of each query with its own key, [..., N], and with every slot, [..., N, M].

    Args:
        query: [..., N, D], of length 1. key: [..., N, D]; constant. bank: [..., M, D]; constant.
    """
    with exact(query):
        query, key, bank = full(query), full(key.detach()), full(bank.detach())
        return (query * key).sum(dim=-1) / temperature, query @ bank.mT / temperature


@torch.no_grad()
def renewed(old: Tensor, vectors: Tensor, keep: Tensor) -> Tensor:
    """Vectors to write: keep * old + (1 - keep) * new, scaled to length 1; [..., N, D].

    Args:
        old: [..., N, D]. vectors: [..., N, D]. keep: [N], CRD's momentum, or 0 to forget the old.
    """
    keep = keep[:, None].to(old.dtype)
    return unit(keep * old + (1 - keep) * full(vectors))


def first_rows(slots: Tensor) -> Tensor:
    """For each row the first row of the same slot, so that rows that share one write the same into it: [N] to [N]."""
    rows = torch.arange(len(slots), device=slots.device)
    return torch.where(slots[:, None] == slots[None, :], rows, len(rows)).amin(dim=1)


def _piece(banks: Tensor) -> int:
    """How many slots are read at a time."""
    return banks.shape[1] if banks.dtype == torch.float32 else PIECE


@dataclass(eq=False)
class Write:
    """What a step has overwritten in the banks: ``old`` [2, N, D] in the slots [N]; and the write that came after it.

    The newest one is empty. A backward pass holds the one of its step, and so those that came after.
    """

    slots: Tensor | None = None
    old: Tensor | None = None
    after: Write | None = None

    def done(self, slots: Tensor, old: Tensor) -> Write:
        """Fill it in; returns the next one. Where it is compiled nothing is kept, because banks are copied there."""
        if torch.compiler.is_compiling():
            return self
        self.slots, self.old, self.after = slots, old, Write()
        return self.after


class BankScores(torch.autograd.Function):
    """Scores of each network's queries [2, N, D] with the other's bank of two [2, M, D], without a copy of the banks.

    While the backward pass reads them, what has been written since the forward pass is put back.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, banks: Tensor, temperature: float, write: Write) -> Tensor:
        ctx.banks, ctx.temperature, ctx.write = banks, temperature, write
        scores = query.new_empty(*query.shape[:2], banks.shape[1])
        size = _piece(banks)
        for at in (0, 1):
            pieces = banks[1 - at : 2 - at].split(size, 1)
            for to, piece in zip(scores[at : at + 1].split(size, 2), pieces, strict=True):
                torch.bmm(query[at : at + 1], full(piece).mT, out=to)
        return scores.div_(temperature)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        # Not counted as a change, because none is left.
        banks, gradient = ctx.banks.data, gradient / ctx.temperature
        writes, new, write = [], [], ctx.write
        while write.after is not None:
            writes.append(write)
            write = write.after
        for write in reversed(writes):
            new.append(banks[:, write.slots])
            banks.index_copy_(1, write.slots, write.old)
        size = _piece(banks)
        query = gradient.new_empty(*gradient.shape[:2], banks.shape[2])
        for at in (0, 1):
            pieces = zip(gradient[at : at + 1].split(size, 2), banks[1 - at : 2 - at].split(size, 1), strict=True)
            query[at : at + 1] = sum(torch.bmm(own, full(piece)) for own, piece in pieces)
        for write, rows in zip(writes, reversed(new), strict=True):
            banks.index_copy_(1, write.slots, rows)
        return query, None, None, None


def crossed_scores(
    query: Tensor, key: Tensor, banks: Tensor, temperature: float, write: Write
) -> tuple[Tensor, Tensor]:
    """:func:`bank_scores` of each network's query with the other's key and bank; the banks may be written afterwards.

    Args:
        query, key: [2, N, D]. banks: [2, M, D]. write: the next one, which the caller fills in when it has written.
    """
    # A compiled backward pass would not know of what is written after it was traced.
    large = banks.numel() * banks.element_size() >= LARGE and not torch.compiler.is_compiling()
    positive, negatives = bank_scores(query, key.flip(0), key[:, :0] if large else banks.flip(0), temperature)
    if large:
        with exact(query):
            negatives = BankScores.apply(query, banks, temperature, write)
    return positive, negatives
