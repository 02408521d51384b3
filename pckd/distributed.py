"""Rows of all processes that train together. In a process that trains alone everything is returned as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from registry import Absent, Output

__all__ = [
    "BatchNormOverRanks",
    "add_up",
    "alone",
    "gather_output",
    "gather_rows",
    "gather_rows_with_gradient",
    "own_rows",
    "world_size",
]

_alone = False

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


def add_up(x: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def gather_rows(x: Tensor) -> Tensor:
    """Rows [N, ...] of every process, in the order of their ranks: [R * N, ...], without gradient.

    Args:
        x: of the same shape in each process.
    """
    ranks = world_size()
    if ranks == 1:
        return x
    x = x.detach().contiguous()
    everyone = [torch.empty_like(x) for _ in range(ranks)]
    dist.all_gather(everyone, x)
    return torch.cat(everyone)


def gather_rows_with_gradient(x: Tensor) -> Tensor:
    """Like :func:`gather_rows`; what the losses of all processes say of a row flows back to the process that has it."""
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather_rows(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return own_rows(total)


def gather_output(output: Output) -> Output:
    """Logits and embeddings of every process, without gradient; not the maps."""
    if world_size() == 1:
        return output
    return Output(gather_rows(output.logits), gather_rows(output.embedding), Absent(NO_MAPS), Absent(NO_MAPS))


def own_rows(x: Tensor) -> Tensor:
    """Of gathered rows, those of this process."""
    return x if world_size() == 1 else x.chunk(world_size())[dist.get_rank()]


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
