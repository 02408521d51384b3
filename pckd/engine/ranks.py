"""Training in several processes: one group, one wrapper around what is trained, sums over everyone."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pckd.functional import world_size
from pckd.functional.ranks import BatchNormOverRanks
from registry import UserError


class Ranks(NamedTuple):
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """This process's part of a batch.

        Raises:
            UserError: the processes cannot have equal parts.
        """
        if batch_size % self.size:
            raise UserError(
                f"batch_size={batch_size} cannot be shared by {self.size} processes; "
                f"try {max(1, round(batch_size / self.size)) * self.size}"
            )
        return batch_size // self.size

    def wrap(self, trainee: nn.Module, device: torch.device) -> nn.Module:
        """Data parallelism around what is trained: each process has the gradients of all."""
        if self.size == 1:
            return trainee
        index = [device.index] if device.type == "cuda" and device.index is not None else None
        with warnings.catch_warnings():
            # Newer releases rename the option and mean to keep this one until there is another way not to broadcast.
            warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)
            # Buffers need no broadcast: statistics are those of all processes. Unused are the parameters of terms that
            # rest in a stage, and of a classifier that no term looks at.
            return nn.parallel.DistributedDataParallel(
                trainee,
                device_ids=index,
                broadcast_buffers=False,
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )

    def synchronize_statistics(self, module: nn.Module, device: torch.device) -> Callable[[], None]:
        """Make every batch normalization inside use the statistics of all processes, in place.

        Returns:
            what puts the module's own batch normalizations back, with the statistics that they would have now.
        """
        norms = {
            name: norm
            for name, norm in module.named_modules(remove_duplicate=False)
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and name and self.size > 1
        }
        if norms:
            convert = nn.SyncBatchNorm.convert_sync_batchnorm if device.type == "cuda" else BatchNormOverRanks.convert
            for name, child in list(module.named_children()):
                setattr(module, name, convert(child))

        def put_back() -> None:
            for name, norm in norms.items():
                now = module.get_submodule(name)
                norm._parameters.update(now._parameters)
                norm._buffers.update(now._buffers)
                norm.train(now.training)
                module.set_submodule(name, norm)

        return put_back

    def same(self, value: Any) -> Any:
        """What the first process has, in all of them."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def everyone(self, value: Any) -> list[Any]:
        """What each process has, by rank."""
        held: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(held, value)
        return held

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


def these() -> Ranks:
    """The processes of the group that this one is in."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if world_size() > 1 else Ranks()


def add_up(x: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """This process among those that ``torchrun`` has started, and its device; alone where it was started alone.

    A group that exists already is used and left as it is.

    Args:
        device: where to train; of several accelerators each process takes the one of its local rank.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ
    if not dist.is_available() or not (started or dist.is_initialized()):
        yield Ranks(), device
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
    finally:
        if mine:
            dist.destroy_process_group()
