"""Training in several processes: one group, one wrapper around what is trained, sums over everyone."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import os
import socket
import struct
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from pckd.distributed import BatchNormOverRanks, world_size
from registry import UserError

PATIENCE = timedelta(minutes=30)
"""How long a process waits for those that are started with it."""
TIMEOUT = timedelta(minutes=10)
"""How long it waits for an answer of one that has come. After that time it notices that a machine has no power."""
POLL_SECONDS = 0.05
"""Between two looks at which of them have come."""


class Ranks(NamedTuple):
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    @property
    def beside(self) -> int:
        """How many of the processes share this machine, as the launcher says."""
        return _number("LOCAL_WORLD_SIZE", 1) if self.size > 1 and os.environ.get("LOCAL_WORLD_SIZE") else 1

    def share(self, batch_size: int) -> int:
        """This process's part of a batch; refuses parts that are not equal."""
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

    @contextlib.contextmanager
    def alike(self) -> Iterator[None]:
        """Raise a UserError of one process in all of them, so that no process waits for one that has given up.

        Nothing inside waits for the other processes.
        """
        own: UserError | None = None
        try:
            yield
        except UserError as error:
            own = error
        errors = [error for error in self.everyone(own) if error is not None]
        if errors:
            raise own or errors[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


def these() -> Ranks:
    """The processes of the group that this one is in."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if world_size() > 1 else Ranks()


def launched() -> Ranks:
    """Which process a launcher such as ``torchrun`` has made of this one, as its environment says."""
    size = _number("WORLD_SIZE", 1) if os.environ.get("WORLD_SIZE") else 1
    # Some clusters set WORLD_SIZE for every job, also for one that no launcher has started.
    if size == 1 or not {"RANK", "MASTER_ADDR"} & os.environ.keys():
        return Ranks()
    _number("MASTER_PORT", 1, 65535)
    if not os.environ.get("MASTER_ADDR"):
        raise _refused("MASTER_ADDR", "the address of the machine of rank 0")
    return Ranks(_number("RANK", 0, size - 1), size)


def _number(variable: str, least: int, most: int | None = None) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        raise _refused(variable, f"a number from {least}{'' if most is None else f' to {most}'}")
    return int(text)


def _refused(variable: str, wanted: str) -> UserError:
    return UserError(
        f"environment variable {variable}={os.environ.get(variable, '')!r}: it must be {wanted}, because WORLD_SIZE="
        f"{os.environ['WORLD_SIZE']} is set; start with torchrun, or unset WORLD_SIZE to train in one process"
    )


_group: Any = None
"""The group that was made here."""
_ended: list[Any] = []
"""Groups that were made here and have ended, but still have their connections.

Threads of a group free its tensors, for which they need Python's lock. The destructor of a group waits for its threads;
PyTorch 2.6 does so with that lock held, and hangs where a thread is still at work. So no destructor is called right
after the last use of a group.
"""
_calls = 0
"""How many calls that have joined are running, one inside another."""


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """This process among those that ``torchrun`` has started, and its device; alone where it was started alone.

    The first call makes a group of the processes. Later calls use it, and it ends with the process. An error that
    leaves the outermost call ends it too, so that the other processes do not wait for this one; the next call makes
    another. A group that somebody else made is used and left as it is.

    Args:
        device: where to train; of several accelerators each process takes the one of its local rank.

    Raises:
        UserError: the processes do not find one another, or the connection to one of them is lost.
    """
    global _calls
    if not dist.is_available() or not (dist.is_initialized() or launched().size > 1):
        yield Ranks(), device
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", _local_accelerator())
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if _calls == 0 and _is_ours() and dist.get_backend() != backend:
        # The calls before were for another kind of device.
        _leave()
    _calls += 1
    try:
        if not dist.is_initialized():
            _make_group(backend, launched())
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
    except BaseException as error:
        lost = _lost_connection(error)
        if _calls == 1:
            _leave()
        if lost is not None:
            raise lost from error
        raise
    finally:
        _calls -= 1


def _local_accelerator() -> int:
    rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= count:
        raise UserError(
            f"no GPU for the process with LOCAL_RANK={rank}: this machine has {count}; "
            "start as many processes as it has GPUs, or give --device cpu"
        )
    return rank


def _make_group(backend: str, own: Ranks) -> None:
    global _group
    _leave()
    if _ended:
        # Close the connections: another process may still wait at one of them.
        time.sleep(POLL_SECONDS)
        _ended.clear()
        # The last error's traceback may hold it, too.
        gc.collect()
    store = _store(own)
    part = dist.PrefixStore(_meet(store, own), store)
    try:
        with _reachable(own) if backend == "gloo" else contextlib.nullcontext():
            dist.init_process_group(backend, store=part, rank=own.rank, world_size=own.size, timeout=TIMEOUT)
    except (RuntimeError, dist.DistError) as error:
        if not _is_of_connection(error):
            raise
        raise UserError(
            f"rank {own.rank} of {own.size} cannot connect to the other processes ({_reason(error)}); on several "
            "machines set GLOO_SOCKET_IFNAME (or NCCL_SOCKET_IFNAME) to the network interface between them"
        ) from error
    _group = dist.group.WORLD


@contextlib.contextmanager
def _reachable(own: Ranks) -> Iterator[None]:
    """Inside, gloo tells other machines the address by which this one reaches the first.

    By itself it tells them the address of the machine's name, and that is often one of the machine alone (127.0.1.1).
    """
    name = None
    if own.beside < own.size and not os.environ.get("GLOO_SOCKET_IFNAME"):
        with contextlib.suppress(OSError):
            if _is_here_only(socket.gethostname()):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as looking:
                    looking.connect(_place())  # sends nothing
                    name = _interface(looking)
    if name is None:
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = name
    try:
        yield
    finally:
        del os.environ["GLOO_SOCKET_IFNAME"]


def _is_here_only(host: str) -> bool:
    try:
        return socket.gethostbyname(host).startswith("127.")
    except OSError:
        return True


def _interface(bound: socket.socket) -> str | None:
    """The name of the network interface that has a socket's own address; None where the system does not say."""
    address = bound.getsockname()[0]
    with contextlib.suppress(ImportError):
        import fcntl

        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                # SIOCGIFADDR of Linux, netdevice(7): the name, and behind it the address that is filled in.
                found = fcntl.ioctl(bound, 0x8915, struct.pack("256s", name.encode()))[20:24]
                if socket.inet_ntoa(found) == address and not address.startswith("127."):
                    return name
    return None


def _is_ours() -> bool:
    return _group is not None and dist.is_initialized() and dist.group.WORLD is _group


def _leave() -> None:
    """End the group that was made here, unless somebody else has done so."""
    global _group
    if _is_ours():
        dist.destroy_process_group()
    if _group is not None:
        _ended.append(_group)
    _group = None


@atexit.register
def _leave_for_good() -> None:
    _leave()
    for group in _ended:
        # One reference too many, so that no destructor is called. The system closes the connections.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


@functools.cache
def _store(own: Ranks) -> Any:
    """Where the processes leave messages for one another; torchrun keeps it, else the first process does."""
    address, port = _place()
    keeps = own.first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    made: list[Any] = []

    def make() -> None:
        try:
            store = dist.TCPStore(
                address, port, own.size, is_master=keeps, timeout=PATIENCE, wait_for_workers=False, multi_tenant=True
            )
        except RuntimeError as error:
            made.append(error)
        else:
            made.append(store)

    # In a thread, because it may wait long for the first process, and in it this one would hear no signal.
    threading.Thread(target=make, daemon=True).start()
    _wait_for(lambda: [] if made else [0], own)
    if isinstance(made[0], RuntimeError):
        raise UserError(
            f"rank {own.rank} of {own.size} cannot {'listen' if keeps else 'connect'} at {address}:{port} "
            f"({_reason(made[0])}); check MASTER_ADDR, or choose another MASTER_PORT"
        )
    return made[0]


def _place() -> tuple[str, int]:
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def _meet(store: Any, own: Ranks) -> str:
    """Wait until all processes are here; the name of a part of the store that is theirs alone.

    torchrun keeps its store when it restarts the processes. The addresses of those that died are still in it, and the
    new processes would connect to them. The count of restarts does not tell old from new, because each machine counts
    its own. So the first process makes up a name. Each other process writes a word of its own under the name that it
    finds, and knows that the name is not an old one when the first process has repeated that word.
    """
    word = uuid.uuid4().hex
    if own.first:
        store.set("pckd", word)
        others = range(1, own.size)
        _wait_for(lambda: [rank for rank in others if not store.check([f"{word}/{rank}"])], own)
        for rank in others:
            store.set(f"{word}/{store.get(f'{word}/{rank}').decode()}", "")
        return word
    name = ""

    def late() -> list[int]:
        nonlocal name
        if store.check(["pckd"]):
            name = store.get("pckd").decode()
            store.set(f"{name}/{own.rank}", word)
        return [] if name and store.check([f"{name}/{word}"]) else [0]

    _wait_for(late, own)
    return name


def _wait_for(late: Callable[[], list[int]], own: Ranks) -> None:
    address, port = _place()
    end = time.monotonic() + PATIENCE.total_seconds()
    while ranks := late():
        if time.monotonic() > end:
            raise UserError(
                f"rank {own.rank} of {own.size}: rank {', '.join(map(str, ranks))} has not come to {address}:{port} "
                f"within {PATIENCE.total_seconds() / 60:g} minutes; see whether it was started, and what it says"
            )
        time.sleep(POLL_SECONDS)


def _lost_connection(error: BaseException) -> UserError | None:
    """The one line for an error of the connection to other processes; None for any other error."""
    cause: BaseException | None = error
    # A plug-in that waits for the other processes is not to blame.
    while cause is not None and not _is_of_connection(cause):
        cause = cause.__cause__
    if cause is None:
        return None
    here = f"rank {dist.get_rank()} of {dist.get_world_size()}: " if dist.is_initialized() else ""
    if any(sign in str(cause) for sign in ("closed by peer", "reset by peer", "Broken pipe", "refused")):
        return UserError(f"{here}another process of this run has died or given up; continue with --resume")
    return UserError(f"{here}cannot reach the other processes of this run ({_reason(cause)}); continue with --resume")


def _is_of_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
