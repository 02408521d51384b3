"""Rows of all processes that train together. In a process that trains alone everything is returned as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from registry import Absent, Output

__all__ = [
    "BatchNormOverRanks",
    "add_up",
    "alone",
    "gather_objects",
    "gather_output",
    "gather_rows",
    "gather_rows_with_gradient",
    "own_rows",
    "uneven_rows",
    "world_size",
]

T = TypeVar("T")

_alone = False
_uneven = False

NO_MAPS = "feature maps are not gathered over processes: this metric or center rule works in one process only"


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process trains and measures by itself, whatever group it is in: the others need not do the same."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextlib.contextmanager
def uneven_rows(uneven: bool = True) -> Iterator[None]:
    """Inside, processes may have another number of rows each: they tell one another before they gather any."""
    global _uneven
    before, _uneven = _uneven, uneven
    try:
        yield
    finally:
        _uneven = before


def _counts(rows: int, device: torch.device) -> list[int]:
    """How many rows each process has."""
    if not _uneven:
        return [rows] * world_size()
    everyone = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(everyone, torch.tensor([rows], device=device))
    return [int(count) for count in everyone]


def add_up(x: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def gather_objects(value: T) -> list[T]:
    """What each process has, in the order of their ranks; anything that can be pickled."""
    if world_size() == 1:
        return [value]
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def gather_rows(x: Tensor) -> Tensor:
    """Rows [N, ...] of every process, in the order of their ranks: [R * N, ...], without gradient.

    Args:
        x: of the same shape in each process; inside :func:`uneven_rows` with any number of rows. What is absent is so
            in every process.
    """
    if world_size() == 1 or isinstance(x, Absent):
        return x
    counts = _counts(len(x), x.device)
    padded = x.detach().new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x.detach()
    everyone = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(everyone, padded)
    return torch.cat([rows[:count] for rows, count in zip(everyone, counts, strict=True)])


def gather_rows_with_gradient(x: Tensor) -> Tensor:
    """Like :func:`gather_rows`; what the losses of all processes say of a row flows back to the process that has it."""
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows, ctx.uneven = len(x), _uneven
        return gather_rows(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        with uneven_rows(ctx.uneven):
            return own_rows(total, ctx.rows)


def gather_output(output: Output) -> Output:
    """Logits and embeddings of every process, without gradient; not the maps."""
    if world_size() == 1:
        return output
    logits, embedding = (x if isinstance(x, Absent) else gather_rows(x) for x in (output.logits, output.embedding))
    return Output(logits, embedding, Absent(NO_MAPS), Absent(NO_MAPS))


def own_rows(x: Tensor, rows: int | None = None) -> Tensor:
    """Of gathered rows, those of this process.

    Args:
        rows: how many it has; by default as many as each other process.
    """
    if world_size() == 1:
        return x
    counts = _counts(len(x) // world_size() if rows is None else rows, x.device)
    return x.split(counts)[dist.get_rank()]


class BatchNormOverRanks(nn.modules.batchnorm._BatchNorm):
    """Batch normalization with the statistics of all processes, on any device.

    ``torch.nn.SyncBatchNorm`` works on accelerators only. Processes have equally many rows, as in training.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        others = [d for d in range(x.dim()) if d != 1]
        own = torch.stack(torch.var_mean(x, others, correction=0))
        variances, means = gather_rows_with_gradient(own[None]).unbind(1)
        mean = means.mean(0)
        # Not E[x^2] - E[x]^2, which cancels where the mean is large.
        variance = variances.mean(0) + (means - mean).square().mean(0)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                count = world_size() * x.numel() / x.shape[1]
                self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), share)
                unbiased = variance.detach() * (count / max(count - 1, 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale = torch.rsqrt(variance + self.eps)
        shift = -mean * scale
        if self.affine:
            scale = scale * self.weight
            shift = shift * self.weight + self.bias
        return (x * scale.view(shape) + shift.view(shape)).to(input.dtype)

    @classmethod
    def convert(cls, module: nn.Module) -> nn.Module:
        """Replace every batch normalization below ``module``; parameters and names stay."""
        for name, child in list(module.named_children()):
            setattr(module, name, cls.convert(child))
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or isinstance(module, cls):
            return module
        new = cls(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        for name, parameter in module.named_parameters(recurse=False):
            setattr(new, name, parameter)
        for name, buffer in module.named_buffers(recurse=False):
            new.register_buffer(name, buffer)
        return new.train(module.training)
