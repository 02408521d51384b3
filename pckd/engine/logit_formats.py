"""How a teacher cache writes logits: whole in 16 or 32 bits, in a byte each, or the largest of them alone.

Shapes: N rows, K classes. An encoded row is so many bytes, uint8 [N, ``size``].
"""

from __future__ import annotations

import math
import re
from typing import Protocol

import torch
from torch import Tensor

from registry import UserError

__all__ = ["LogitFormat", "logit_format"]


class LogitFormat(Protocol):
    size: int
    """Bytes of an encoded row."""

    def encode(self, logits: Tensor) -> Tensor:
        """uint8 [N, size] of float [N, K]."""
        ...

    def decode(self, data: Tensor) -> Tensor:
        """float32 [N, K] of uint8 [N, size]; not finite where a value did not fit."""
        ...


class Floats:
    """Every logit as a floating-point number."""

    def __init__(self, classes: int, dtype: torch.dtype) -> None:
        self.dtype, self.size = dtype, classes * dtype.itemsize

    def encode(self, logits: Tensor) -> Tensor:
        return as_bytes(logits.to(self.dtype))

    def decode(self, data: Tensor) -> Tensor:
        return of_bytes(data, self.dtype).float()


class Bytes:
    """Every logit as one of 256 steps from the lowest to the highest of its row: off by half a step at most."""

    def __init__(self, classes: int) -> None:
        self.size = classes + 8

    def encode(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        low, high = logits.aminmax(dim=1, keepdim=True)
        step = ((high - low) / 255).clamp_min(torch.finfo(torch.float32).tiny)
        levels = ((logits - low) / step).round().nan_to_num().clamp(0, 255).to(torch.uint8)
        return torch.cat([as_bytes(torch.cat([low, step], 1)), levels], 1)

    def decode(self, data: Tensor) -> Tensor:
        low, step = of_bytes(data[:, :8], torch.float32).split(1, 1)
        return low + step * data[:, 8:].float()


class Top:
    """The ``count`` largest logits, in 16 bits, and their classes; all others as one value.

    That value is the logarithm of the others' mean exponential, so that the probabilities of the largest are right at
    temperature 1. At higher temperatures a distillation loss lives on the small logits, which are lost.
    """

    def __init__(self, classes: int, count: int) -> None:
        self.classes, self.count, self.size = classes, count, count * 6 + 2

    def encode(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        values, places = logits.topk(self.count, dim=1)
        others = logits.scatter(1, places, -math.inf)
        rest = others.logsumexp(1, keepdim=True) - math.log(self.classes - self.count)
        return torch.cat([as_bytes(torch.cat([values, rest], 1).half()), as_bytes(places.int())], 1)

    def decode(self, data: Tensor) -> Tensor:
        ends = self.count * 2, self.count * 2 + 2
        values, rest = (
            of_bytes(part, torch.float16).float() for part in (data[:, : ends[0]], data[:, ends[0] : ends[1]])
        )
        places = of_bytes(data[:, ends[1] :], torch.int32).long()
        return rest.repeat(1, self.classes).scatter(1, places, values)


def logit_format(name: str, classes: int) -> LogitFormat:
    """The format of a name: ``"float16"``, ``"float32"``, ``"uint8"`` or ``"top50"`` with any number.

    Raises:
        UserError: none of these, or as many logits as there are, or more.
    """
    if name == "uint8":
        return Bytes(classes)
    if name in ("float16", "float32"):
        return Floats(classes, getattr(torch, name))
    found = re.fullmatch(r"top(\d+)", name)
    if found is None:
        raise UserError(f"cache_logits={name!r}: it must be float16, float32, uint8 or topN, as in top50")
    if not 1 <= int(found[1]) < classes:
        raise UserError(f"cache_logits={name!r}: there are {classes} classes, so N must be 1 to {classes - 1}")
    return Top(classes, int(found[1]))


def as_bytes(values: Tensor) -> Tensor:
    """uint8 [N, n * bytes] of [N, n]."""
    return values.contiguous().view(torch.uint8)


def of_bytes(data: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, n] of uint8 [N, n * bytes]."""
    # A row may begin at any byte.
    return data.contiguous().view(dtype)
